"""Tiny models and the methods under test, by name; a plugin that tests/conftest.py loads where there is a host."""

from __future__ import annotations

import gc
from collections.abc import Callable

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests import tiny
from reins.tests.methods import COVERED, METHODS

torch.set_num_threads(1)
_MODELS: dict[str, ModelPatcher] = {}


def _model(name: str) -> ModelPatcher:
    """In double precision: how rows share a batch then moves results by 1e-7, where single precision shows 1e-5."""
    if name not in _MODELS:
        _MODELS[name] = getattr(tiny, name)(dtype=torch.float64)
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


def pytest_sessionfinish() -> None:
    """Let go of the models while the host's modules still live."""
    _MODELS.clear()
    comfy.model_management.unload_all_models()
    gc.collect()
