"""What the registry of custom nodes asks of a pack, by the rules of its own `node validate`, without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read TOML")
yaml = pytest.importorskip("yaml", reason="ComfyUI brings PyYAML")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

ROOT = Path(__file__).parents[1]
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = CONTENT["project"], CONTENT["tool"]["comfy"]
SYSTEMS = ("OS Independent", "Microsoft", "POSIX", "MacOS")
ACCELERATORS = (
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
)
RAW = "https://raw.githubusercontent.com/comfyui-reins/ComfyUI-Reins/main/"


def test_name_version_licence_and_publisher_are_as_the_registry_wants_them():
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", PROJECT["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert PROJECT["description"]
    assert (ROOT / PROJECT["license"]["file"]).is_file()
    assert COMFY["PublisherId"]
    assert COMFY["DisplayName"]
    assert PROJECT["urls"]["Repository"].startswith("https://github.com/")
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])


def test_classifiers_are_of_the_registrys_lists():
    listed = PROJECT["classifiers"]
    systems = [each.removeprefix("Operating System :: ") for each in listed if each.startswith("Operating System")]
    accelerators = [each.removeprefix("Environment :: ") for each in listed if each.startswith("Environment")]
    assert systems
    assert all(each.startswith(SYSTEMS) for each in systems)
    assert accelerators
    assert set(accelerators) <= set(ACCELERATORS)


def test_the_changelog_begins_with_this_version_and_dependencies_are_the_requirements():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["version"]
    assert PROJECT["dependencies"] == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


def test_icon_and_banner_are_files_of_this_repository_in_the_sizes_that_are_shown():
    icon, banner = (COMFY[key].removeprefix(RAW) for key in ("Icon", "Banner"))
    size = re.search(r'width="(\d+)" height="(\d+)"', (ROOT / icon).read_text(encoding="utf-8")).groups()
    assert size == ("400", "400")
    with Image.open(ROOT / banner) as picture:
        assert picture.width * 9 == picture.height * 21


def test_what_nodes_read_at_run_time_is_included():
    assert all((ROOT / place).is_dir() for place in COMFY["includes"])
    assert {"demo/weights", "locales", "web", "example_workflows"} <= set(COMFY["includes"])


def test_no_code_runs_text_or_stands_two_to_a_line():
    """S102 exec, S307 eval, E702 statements with semicolons."""
    command = [sys.executable, "-m", "ruff", "check", ".", "--quiet", "--isolated", "--select", "S102,S307,E702"]
    if subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True).returncode:
        pytest.skip("ruff is in requirements-dev.txt")
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_continuous_run_tests_on_three_systems():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    systems = {entry["os"].partition("-")[0] for entry in jobs["tests"]["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "windows", "macos"}
    assert any(step.get("run", "").startswith("python dev.py test") for step in jobs["tests"]["steps"])
