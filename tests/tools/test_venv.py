"""The bare environment and the cache folder: made once, mended if broken, for one dev.py at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from reins.tools import venv
from reins.tools.screen import DevError


@pytest.fixture
def made(cache, monkeypatch):
    """Stands for `python -m venv`: what it was asked to make; the environment works afterwards."""
    calls = []

    def call(command):
        calls.append(command)
        venv.venv_python().parent.mkdir(parents=True)
        (venv.venv_folder() / "pyvenv.cfg").touch()
        venv.venv_python().symlink_to(sys.executable)
        return 0

    monkeypatch.setattr(venv.subprocess, "call", call)
    return calls


def test_an_environment_is_made_once(made):
    assert venv.ensure_venv() is True
    assert venv.ensure_venv() is False
    assert made == [[sys.executable, "-m", "venv", str(venv.venv_folder())]]


def test_an_environment_whose_python_is_gone_is_made_anew(made):
    venv.ensure_venv()
    venv.venv_python().unlink()
    (venv.venv_folder() / "old").touch()
    assert venv.ensure_venv() is True
    assert not (venv.venv_folder() / "old").exists()


def test_an_environment_whose_python_has_no_pip_is_made_anew(made):
    venv.ensure_venv()
    venv.venv_python().unlink()
    venv.venv_python().write_text("#!/bin/sh\nexit 1\n")
    venv.venv_python().chmod(0o755)
    assert venv.ensure_venv() is True
    assert len(made) == 2


def test_an_environment_of_somebody_else_is_left_alone(made):
    venv.venv_folder().mkdir()
    (venv.venv_folder() / "pyvenv.cfg").touch()
    with pytest.raises(DevError, match=r"an environment that dev\.py did not make; set REINS_HOME"):
        venv.ensure_venv()
    assert not made


def test_a_python_that_cannot_make_one_is_told_what_to_install(cache, monkeypatch):
    monkeypatch.setattr(venv.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else True)
    with pytest.raises(DevError, match=r"it has no ensurepip\. On Debian and Ubuntu install python3-venv"):
        venv.ensure_venv()


def test_a_failing_venv_is_no_environment(cache, monkeypatch):
    monkeypatch.setattr(venv.subprocess, "call", lambda command: 1)
    with pytest.raises(DevError, match="no virtual environment could be made"):
        venv.ensure_venv()


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_cache_folder_that_cannot_be_used_is_named(kind, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REINS_HOME", str(tmp_path / "file" / ("" if kind == "a file" else "below")))
    with pytest.raises(DevError, match=r"file.* cannot be used as the cache folder: .+Set REINS_HOME"):
        venv.setting_up().__enter__()


def test_what_killed_set_ups_left_behind_goes(cache):
    for name in ("scratch-1", "partial-ComfyUI-0.30.0", "ComfyUI-0.30.0"):
        (cache / name / "below").mkdir(parents=True)
    with venv.setting_up():
        assert {path.name for path in cache.iterdir()} == {"ComfyUI-0.30.0", "lock"}


def test_a_second_dev_py_waits_for_the_first(cache, capsys):
    code = "from tools.venv import setting_up; lock = setting_up(); lock.__enter__(); print('in', flush=True); input()"
    root = Path(venv.__file__).parents[1]
    first = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout.readline() == "in\n"
        entered = threading.Event()

        def enter():
            with venv.setting_up():
                entered.set()

        second = threading.Thread(target=enter)
        second.start()
        assert not entered.wait(0.5)
        first.communicate("\n")
        second.join(10)
        assert entered.is_set()
    assert "another dev.py is setting up; waiting for it" in capsys.readouterr().out


def test_the_cache_folder_is_the_named_one_else_that_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REINS_HOME", "~/a place")
    assert venv.cache_folder() == tmp_path / "a place"
    monkeypatch.delenv("REINS_HOME")
    monkeypatch.setattr(venv.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert venv.cache_folder() == tmp_path / "xdg" / "reins"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert venv.cache_folder() == tmp_path / ".cache" / "reins"
    monkeypatch.setattr(venv.sys, "platform", "darwin")
    assert venv.cache_folder() == tmp_path / "Library" / "Caches" / "reins"


@pytest.mark.skipif(sys.platform == "win32", reason="file locks of POSIX")
def test_a_file_system_that_cannot_lock_is_used_without_a_lock(cache, monkeypatch):
    import fcntl

    def fail(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with venv.setting_up():
        assert (cache / "lock").exists()
