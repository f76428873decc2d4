"""A cache folder of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reins.tools import hosts, packages


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no ComfyUI round the checkout and none named."""
    monkeypatch.setenv("REINS_HOME", str(tmp_path / "cache"))
    for name in ("COMFYUI_PATH", "REINS_COVERING", "REINS_BRIEF", "REINS_FULL", "OMP_NUM_THREADS"):  # of this very run
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hosts, "located_hosts", list)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def this_pip(monkeypatch):
    """Lets pip run in the environment of the tests; what it would install must not be there."""
    monkeypatch.setattr(packages, "venv_python", lambda: Path(sys.executable))
