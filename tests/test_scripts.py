"""Scripts that are run by path: Python finds the files beside a script before it finds installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


def test_the_bench_is_among_the_scripts():
    assert ROOT / "bench" / "run.py" in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_beside_a_script_hides_an_installed_module(script):
    """bench/transformers.py stood before the package of that name, which the host imports, and no bench could run."""
    installed = {*sys.stdlib_module_names, *packages_distributions()}
    beside = {path.stem for path in script.parent.glob("*.py")} | {
        path.name for path in script.parent.iterdir() if (path / "__init__.py").exists()
    }
    assert beside & installed <= {"__init__", "__main__"}
