"""Tiny models and the methods under test, by name; a plugin that tests/conftest.py loads where there is a host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import COVERED, METHODS

torch.set_num_threads(1)
_MODELS: dict[str, ModelPatcher] = {}


def _model(name: str) -> ModelPatcher:
    """In double precision: how rows share a batch then moves results by 1e-7, where single precision shows 1e-5."""
    if name not in _MODELS:
        _MODELS[name] = getattr(tiny_models, name)(dtype=torch.float64)
    return _MODELS[name].clone()


@pytest.fixture
def sd15() -> ModelPatcher:
    return _model("sd15")


@pytest.fixture
def sdxl() -> ModelPatcher:
    return _model("sdxl")


@pytest.fixture(params=["sd15", "sdxl"])
def model(request: pytest.FixtureRequest) -> ModelPatcher:
    return _model(request.param)


@pytest.fixture(params=COVERED)
def method(request: pytest.FixtureRequest) -> Callable[[ModelPatcher], ModelPatcher]:
    return METHODS[request.param]


@pytest.fixture
def folder_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Puts an empty folder of our own in front of those of a kind of files."""

    def in_front(kind: str) -> Path:
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path), *paths], extensions))
        folder_paths.filename_list_cache.clear()
        return tmp_path

    yield in_front
    folder_paths.filename_list_cache.clear()


def pytest_sessionfinish() -> None:
    """Let go of the models while the host's modules still live."""
    _MODELS.clear()
    comfy.model_management.unload_all_models()
    gc.collect()
