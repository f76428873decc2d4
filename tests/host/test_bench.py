"""The bench can be started: each of its modules is found and fits the pack."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py") if path.stem != "__init__"))
def test_each_module_of_the_bench_is_found(name):
    assert importlib.import_module(f"reins.bench.{name}").__doc__
