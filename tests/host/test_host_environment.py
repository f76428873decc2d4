"""The host runs on what its own requirements bring; a package that only our tests need must not fill a gap."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from reins.demo.host import server_env
from reins.tests.helpers.named_host import host_folder
from reins.tools.environment import BASICS
from reins.tools.venv import normal_name

NOT_NAMED = ("requests",)  # hosts before 0.16 import it and do not name it
HIDE = """
import asyncio, json, sys
from importlib.machinery import PathFinder

MODULES, DISTRIBUTIONS = map(set, json.loads(sys.stdin.read()))

class Hiding:
    "Finds what is installed, except for what is not to be there."
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in MODULES else PathFinder.find_spec(name, path, target)
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (one for one in found if one.metadata["Name"] not in DISTRIBUTIONS)
    invalidate_caches = PathFinder.invalidate_caches

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:
    del sys.modules[name]  # what a .pth file imported before
sys.path[0] = ""  # as `python main.py` has it: the host's folder
"""
SERVER = """
import main, nodes, server

async def start():
    server.PromptServer(asyncio.get_running_loop())
    failed = await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    assert not failed, failed

asyncio.run(start())
"""
ALONE = ("--disable-all-custom-nodes", "--database-url", "sqlite:///:memory:")
IMPORTS_UNNAMED = "import comfy.options; comfy.options.enable_args_parsing(); import app.frontend_management"


def _named_by_the_host() -> list[str]:
    lines = (host_folder() / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := line.partition("#")[0].strip()) and not text.startswith("-")]


def _brought_by(requirements: Iterable[str]) -> set[str]:
    """The names of the installed distributions that pip would install for these requirements."""
    installed = {normal_name(one.metadata["Name"]): one for one in importlib.metadata.distributions()}
    brought: set[tuple[str, str]] = set()  # (name, extra); the empty extra is the distribution itself
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = normal_name(wanted.name)
        new = {(name, extra) for extra in ("", *wanted.extras)} - brought
        brought |= new
        if name in installed:
            further = [Requirement(text) for text in installed[name].requires or ()]
            extras = [extra for _, extra in new]
            waiting += [one for one in further if any(_applies(one, extra) for extra in extras)]
    return {name for name, _ in brought}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _run(code: str, brought: set[str], base: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in the host's folder as if no other distributions than these were installed."""
    owners = importlib.metadata.packages_distributions()
    modules = [module for module, names in owners.items() if brought.isdisjoint(map(normal_name, names))]
    names = {one.metadata["Name"] for one in importlib.metadata.distributions()}
    distributions = [name for name in names if normal_name(name) not in brought]
    command = [sys.executable, "-c", HIDE + code, "--cpu", "--base-directory", str(base), *ALONE]
    return subprocess.run(
        command, cwd=host_folder(), env=server_env(), input=json.dumps([modules, distributions]),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip


def test_the_set_up_installs_what_hosts_do_not_name():
    assert set(NOT_NAMED) <= {normal_name(line) for line in BASICS.read_text(encoding="utf-8").splitlines()}


def test_everything_that_the_host_names_is_installed():
    wanted = [Requirement(text) for text in _named_by_the_host()]
    names = {normal_name(one.name) for one in wanted if _applies(one, "")}
    assert names <= {normal_name(one.metadata["Name"]) for one in importlib.metadata.distributions()}


def test_the_host_needs_nothing_but_what_it_names_and_what_is_known_to_be_unnamed(tmp_path):
    started = _run(SERVER, _brought_by([*_named_by_the_host(), *NOT_NAMED]), tmp_path)
    assert started.returncode == 0, started.stdout[-4000:]


@pytest.mark.parametrize("package", NOT_NAMED)
def test_a_package_that_nobody_names_is_missed(package, tmp_path):
    brought = _brought_by([*_named_by_the_host(), *NOT_NAMED]) - {package}
    started = _run(IMPORTS_UNNAMED, brought, tmp_path)
    assert started.returncode != 0
    assert f"No module named '{package}'" in started.stdout
