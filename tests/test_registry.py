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
FILLED_IN = ("Repository", "PublisherId", "Icon", "Banner")  # by the publisher, who knows the addresses


def test_name_version_licence_and_publisher_are_as_the_registry_wants_them():
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", PROJECT["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert PROJECT["description"]
    assert (ROOT / PROJECT["license"]["file"]).is_file()
    assert COMFY["PublisherId"]
    assert COMFY["DisplayName"]
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


def test_the_developer_page_names_the_fields_that_the_publisher_fills_in():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "pyproject.toml" in line and "publisher" in line)
    assert all(f"`{field}`" in line for field in FILLED_IN)
    assert {"`docs/icon.svg`", "`docs/banner.png`"} <= set(re.findall(r"`[^`]+`", line))


def test_icon_and_banner_have_the_sizes_that_the_registry_shows():
    icon = (ROOT / "docs" / "icon.svg").read_text(encoding="utf-8")
    assert re.search(r'width="(\d+)" height="(\d+)"', icon).groups() == ("400", "400")
    with Image.open(ROOT / "docs" / "banner.png") as picture:
        assert picture.width * 9 == picture.height * 21


def test_what_nodes_read_at_run_time_is_included():
    assert all((ROOT / place).is_dir() for place in COMFY["includes"])
    assert {"demo/weights", "locales", "web", "example_workflows", "subgraphs"} <= set(COMFY["includes"])


WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
# S102 exec, S307 eval, E702 statements with semicolons: `node validate` prints them and succeeds all the same.
CHECK = ["check", ".", "--isolated", "--select", "S102,S307,E702"]


def ruff(folder: Path) -> subprocess.CompletedProcess[str]:
    if subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True).returncode:
        pytest.skip("ruff is in requirements-dev.txt")
    return subprocess.run([sys.executable, "-m", "ruff", *CHECK], cwd=folder, capture_output=True, text=True)


def test_no_code_runs_text_or_stands_two_to_a_line():
    found = ruff(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("line", ["exec(text)", "eval(text)", "a = 1; b = 2"])
def test_the_continuous_run_fails_on_what_the_registry_only_prints(line, tmp_path):
    runs = [step.get("run", "") for step in WORKFLOW["jobs"]["registry"]["steps"]]
    assert " ".join(["ruff", *CHECK]) in runs
    assert runs.index(" ".join(["ruff", *CHECK])) < next(i for i, run in enumerate(runs) if "node validate" in run)
    (tmp_path / "bad.py").write_text(f"{line}\n", encoding="utf-8")
    assert ruff(tmp_path).returncode == 1


def test_the_continuous_run_tests_on_three_systems():
    jobs = WORKFLOW["jobs"]
    systems = {entry["os"].partition("-")[0] for entry in jobs["tests"]["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "windows", "macos"}
    assert any(step.get("run", "").startswith("python dev.py test") for step in jobs["tests"]["steps"])
