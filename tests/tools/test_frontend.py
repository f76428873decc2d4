"""Other editors: installed once, beside the environment, and never in half."""

from __future__ import annotations

from pathlib import Path

import pytest
from reins.tools import frontend
from reins.tools.screen import DevError


@pytest.fixture
def installs(cache, monkeypatch):
    """What pip would install; it makes the folder that it is told to."""
    found = []

    def install(steps):
        for step in steps:
            found.append(step.arguments)
            target = Path(step.arguments[step.arguments.index("--target") + 1])
            (target / "comfyui_frontend_package" / "static").mkdir(parents=True)

    monkeypatch.setattr(frontend, "check_registry", lambda requirement: None)
    monkeypatch.setattr(frontend, "run_steps", install)
    return found


def test_the_newest_editor_is_installed_once_and_brings_nothing_else(installs, cache):
    first = frontend.newest_frontend()
    assert first == cache / f"frontend-{frontend.NEWEST}" / "comfyui_frontend_package" / "static"
    assert first.is_dir()
    assert frontend.newest_frontend() == first
    (arguments,) = installs
    assert "--no-deps" in arguments
    assert arguments[-1] == f"comfyui-frontend-package=={frontend.NEWEST}"


def test_an_interrupted_install_does_not_pass_for_the_whole(installs, cache, monkeypatch):
    whole = frontend.run_steps

    def half(steps):
        whole(steps)
        raise DevError("no network")

    monkeypatch.setattr(frontend, "run_steps", half)
    with pytest.raises(DevError, match="no network"):
        frontend.newest_frontend()
    assert not (cache / f"frontend-{frontend.NEWEST}").exists()


def test_the_editor_that_a_host_pins_is_installed_beside_the_newest(installs, cache, tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\ncomfyui-frontend-package==1.2.3\nnumpy\n")
    assert frontend.own_frontend(tmp_path) == cache / "frontend-1.2.3" / "comfyui_frontend_package" / "static"
    assert installs[0][-1] == "comfyui-frontend-package==1.2.3"
    (tmp_path / "requirements.txt").write_text("torch\n")
    with pytest.raises(DevError, match="names no version of comfyui-frontend-package"):
        frontend.own_frontend(tmp_path)
