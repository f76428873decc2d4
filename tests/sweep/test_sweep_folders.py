"""Temporary folders: a killed sweep's go when the next one starts, and nobody else's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")

from reins.sweep.folders import HELD, PREFIX, ServerFolder

ROOT = Path(__file__).parents[2]
KILLED = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
tempfile.tempdir = sys.argv[2]
from demo.inside import load_pack
load_pack()
from reins.sweep.folders import ServerFolder
folder = ServerFolder()
(folder.path / "models").symlink_to(sys.argv[3])
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_the_folder_of_a_killed_sweep_goes_and_others_stay(tmp_path, monkeypatch):
    place, models = tmp_path / "tmp", tmp_path / "models"
    for folder in (place, models):
        folder.mkdir()
    (models / "one.safetensors").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    held = ServerFolder()
    subprocess.run([sys.executable, "-c", KILLED, str(ROOT), str(place), str(models)])
    (left,) = set(place.glob(f"{PREFIX}*")) - {held.path}
    (place / f"{PREFIX}new").mkdir()  # of somebody who is about to hold it
    own = ServerFolder()
    assert not left.exists()
    assert held.path.exists() and own.path.exists() and (place / f"{PREFIX}new").exists()
    assert (models / "one.safetensors").exists()  # a link, and what it leads to is not ours
    own.remove()
    held.remove()
    assert not own.path.exists() and not held.path.exists()


def test_nothing_is_removed_where_the_file_system_cannot_lock(tmp_path, monkeypatch):
    from reins.sweep import folders

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = ServerFolder()
    monkeypatch.setattr(folders, "lock", lambda file, wait: True)
    ServerFolder()
    assert (held.path / HELD).exists()
