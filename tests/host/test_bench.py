"""The bench can be started: each of its modules is found and fits the pack."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py") if path.stem != "__init__"))
def test_each_module_of_the_bench_is_found(name):
    assert importlib.import_module(f"reins.bench.{name}").__doc__


def test_some_tables_are_measured_anew_and_the_others_stay():
    from reins.bench.run import merged

    page = "# Costs\n\nPreface.\n\n## first\n\n| old |\n\n## second\n\n| kept |\n"
    found = [["## first", "", "| new |", ""], ["## third", "", "| added |", ""]]
    assert merged(page, found) == (
        "# Costs\n\nPreface.\n\n## first\n\n| new |\n\n## second\n\n| kept |\n\n## third\n\n| added |\n"
    )
    assert merged(merged(page, found), found) == merged(page, found)
    assert merged((BENCH / "RESULTS.md").read_text(encoding="utf-8"), []).split() == (
        (BENCH / "RESULTS.md").read_text(encoding="utf-8").split()
    )
