"""Models that the host's node TorchCompileModel compiles, in tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from comfy.ldm.modules import attention
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper

TOLD = "so the run is not compiled"


class Graphs:
    """A backend that makes no code of its own and counts the graphs that torch asks it for."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.number += 1
        return graph.forward

    def taken(self) -> int:
        """Returns how many graphs there were since the last question."""
        number, self.number = self.number, 0
        return number


def without_guards_of_options(guards: Any) -> list[bool]:
    """The filter of the host's node."""
    return ["transformer_options" not in guard.name for guard in guards]


def compiled(model: ModelPatcher, backend: Any = "eager", **kwargs: Any) -> ModelPatcher:
    """The model as the host's node compiles it."""
    clone = model.clone()
    set_torch_compile_wrapper(clone, backend, options={"guard_filter_fn": without_guards_of_options}, **kwargs)
    return clone


def use_torch_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all modules use torch's attention, as hosts with a GPU do. The host's own for CPUs cannot be compiled."""
    others = attention.optimized_attention, attention.optimized_attention_masked
    for module in [*sys.modules.values()]:
        names = [name for name, value in [*vars(module).items()] if any(value is other for other in others)]
        for name in names:
            monkeypatch.setattr(module, name, attention.attention_pytorch)
