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


def test_a_table_has_a_cell_for_each_column():
    from reins.bench.result_tables import on_a_latent, runs, table

    assert table(on_a_latent("A", (8, 12), "cfg 5"), runs(2, 3, "Words."), ("nodes", "ms"), [("plain", "1.0")]) == [
        "## A, latent 8x12, cfg 5", "", "2 steps, 3 rounds. Words.", "",
        "| nodes | ms |", "|---|---|", "| plain | 1.0 |", "",
    ]  # fmt: skip
    assert table("B", "", ("nodes",), []) == ["## B", "", "| nodes |", "|---|", ""]
    with pytest.raises(ValueError, match=r"C: expected 2 cells as the head has, found 1: \['plain'\]"):
        table("C", "", ("nodes", "ms"), [("plain",)])


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.name)
def test_one_function_writes_all_tables(path):
    printers = [line for line in path.read_text(encoding="utf-8").splitlines() if "---|" in line]
    assert len(printers) == (path.name == "result_tables.py")
