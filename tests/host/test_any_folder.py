"""The tests pass in every folder that a checkout may lie in; pytest itself treats some names in another way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reins.tests.helpers.named_host import host_folder

ROOT = Path(__file__).parents[2]
NAMES = ("ComfyUI-Reins", "a name with spaces", "a.dot", "9digits")
PART = ("tests/test_blur.py", "tests/host/test_layers.py")  # one file without the host, one with it
LARGE = ("tests/golden", "demo/weights", "docs/images", "web/docs/images")  # linked instead of copied
LEFT_OUT = shutil.ignore_patterns(
    ".git", "output", "__pycache__", "*_cache", "venv", ".venv", *(Path(folder).name for folder in LARGE)
)


def copy_of_the_checkout(folder: Path) -> Path:
    """All files of the checkout, also those that are not committed yet; large ones by links."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    for name in LARGE:
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


def pytest_in(folder: Path, *arguments: str) -> str:
    """What pytest says; its exit code is asserted."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    chosen = {name for name in os.environ if name.startswith(("REINS_", "PYTEST_"))}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    found = subprocess.run(command, cwd=folder, env=environment | {"PWD": str(folder)}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    return found.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_tests_passes_in_a_folder_of_any_name(name, tmp_path):
    folder = copy_of_the_checkout(tmp_path / name)
    assert " passed" in pytest_in(folder, *PART)


def test_they_pass_through_a_link(tmp_path):
    link = tmp_path / "Reins-link"
    link.symlink_to(copy_of_the_checkout(tmp_path / "elsewhere"), target_is_directory=True)
    assert " passed" in pytest_in(link, *PART)


def test_they_pass_inside_custom_nodes_and_dev_py_finds_the_comfyui_round_them(tmp_path):
    host = tmp_path / "ComfyUI"
    host.mkdir()
    for entry in host_folder().iterdir():
        if entry.name != "custom_nodes":
            (host / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    folder = copy_of_the_checkout(host / "custom_nodes" / "ComfyUI-Reins")
    assert " passed" in pytest_in(folder, *PART)
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    command = [sys.executable, "dev.py", "hosts"]
    found = subprocess.run(command, cwd=folder, env=environment | {"PWD": str(folder)}, capture_output=True, text=True)
    assert found.stdout.count("\n") == 1
    assert f"({host}), in whose custom_nodes this checkout lies" in found.stdout


def test_the_whole_of_the_tests_is_collected_in_a_clone_with_its_default_name(tmp_path):
    folder = copy_of_the_checkout(tmp_path / "ComfyUI-Reins")
    said = pytest_in(folder, "--collect-only", "tests")
    assert " tests collected" in said.splitlines()[-1]
