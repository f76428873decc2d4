"""What `comfy node pack` puts into the pack that users install: the tracked files without those of .comfyignore."""

from __future__ import annotations

import ast
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET = 36_000_000  # bytes, packed: 35.6 MB, of which 30.8 are the weights of the demo model
NOT_FOR_USERS = ("tests", "bench", "findings", ".ci", ".github")


def git(*arguments: str) -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    """The files of the pack, by the rules of git, which are also those of comfy-cli."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("what ships is chosen from what git tracks: needs git and a checkout")
    return set(git()) - set(git("--ignored", "--exclude-from=.comfyignore"))


def imported(path: Path) -> Iterator[Path]:
    """The files of the pack that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield from (folder / "__init__.py", folder.with_suffix(".py"))
            yield from ((folder / alias.name).with_suffix(".py") for alias in node.names)


def needed(*starts: str) -> set[str]:
    """The modules that these import, and those that they import in turn."""
    found, waiting = set(), [ROOT / start for start in starts]
    while waiting:
        path = waiting.pop()
        if path.is_file() and path not in found:
            found.add(path)
            packages = [parent / "__init__.py" for parent in path.parents if parent != ROOT and ROOT in parent.parents]
            waiting += [*imported(path), *packages]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_no_test_and_no_measurement_ships(shipped):
    assert not [name for name in shipped if name.split("/")[0] in NOT_FOR_USERS]
    assert {name.split("/")[0] for name in git()} >= set(NOT_FOR_USERS)  # else this test would say nothing


def test_every_module_that_the_pack_imports_ships(shipped):
    modules = needed("__init__.py")
    assert {name.split("/")[0] for name in modules} == {"__init__.py", "demo", "nodes", "engine", "models"}
    floors = {
        path.relative_to(ROOT).as_posix()
        for floor in ("nodes", "engine", "models")
        for path in (ROOT / floor).rglob("*.py")
    }
    assert floors <= modules <= shipped


def test_everything_that_the_nodes_and_the_editor_read_ships(shipped):
    folders = ("demo/weights", "example_workflows", "locales", "subgraphs", "web")
    assert {name for name in git() if name.startswith(folders)} <= shipped
    assert {"LICENSE", "README.md", "pyproject.toml", "requirements.txt"} <= shipped


def test_the_demo_runs_from_the_pack_that_ships(shipped):
    commands = needed(
        "dev.py", "tools/commands.py", "demo/run.py", "demo/serve.py", "demo/weightless.py", "demo/train.py"
    )
    assert commands | {"requirements-dev.txt", "tools/constraints.in", "tools/constraints.txt"} <= shipped
    sweep = {f"sweep/{path.name}" for path in (ROOT / "sweep").iterdir() if path.is_file()}
    assert needed("sweep/command.py", "sweep/cluster.py") | sweep | {"requirements-sweep.txt"} <= shipped
    assert {name for name in git() if name.startswith("demo/api/")} <= shipped


def test_the_pack_keeps_to_its_size(shipped):
    sizes = {name: len(zlib.compress((ROOT / name).read_bytes(), 6)) for name in shipped}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    total = sum(sizes.values())
    assert total < BUDGET, f"{total / 1e6:.1f} MB of {BUDGET / 1e6:.1f}; the largest are {', '.join(largest)}"
