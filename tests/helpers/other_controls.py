"""What Advanced-ControlNet does: ControlNets with code on the object, and attention called with fewer options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.controlnet import ControlBase, ControlNet
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from reins.tests.helpers import tiny_models
from torch import Tensor


def on_the_object(control: ControlNet) -> ControlNet:
    """A ControlNet of the host whose object has another pack's `get_control`, bound to this object."""
    asked = control.get_control

    def get_control(*arguments: Any) -> dict[str, list] | None:
        return asked(*arguments)

    control.get_control = get_control
    return control


class Reference(ControlBase):
    """A ControlNet whose class has no `get_control`, for each object has one; the network of another one answers."""

    def __init__(self, control: ControlNet) -> None:
        super().__init__()
        self.get_control = lambda *arguments: control.get_control(*arguments)
        self.get_models = control.get_models
        self.pre_run = control.pre_run
        self.cleanup = control.cleanup


def careless(model: ModelPatcher, missing: Sequence[str], reference: Tensor | None = None) -> ModelPatcher:
    """A pack that calls slots and patches of the blocks by itself, with options that lack some of the host's keys.

    Tokens (1, n, c) of a reference, if given, stand behind k and v of each self-attention of that width.
    """

    def fewer(function: Callable[..., Any], longer: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            *tensors, options = arguments
            if longer and reference is not None and tensors[1].shape[2] == reference.shape[2]:
                q, k, v = tensors
                rows = reference.to(k).expand(len(k), -1, -1)
                tensors = [q, torch.cat([k, rows], 1), torch.cat([v, rows], 1)]
            return function(*tensors, {key: value for key, value in options.items() if key not in missing})

        return call

    def send(executor: Any, *arguments: Any, **kwargs: Any) -> Tensor:
        *inputs, options = arguments
        slots = {
            kind: {place: fewer(slot, kind == "attn1") for place, slot in of_kind.items()}
            for kind, of_kind in options.get("patches_replace", {}).items()
        }
        patches = {kind: [fewer(patch) for patch in of_kind] for kind, of_kind in options.get("patches", {}).items()}
        return executor(*inputs, {**options, "patches_replace": slots, "patches": patches}, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", send)
    return model


def prompts(control: ControlBase) -> dict[str, list]:
    """Two prompts with one ControlNet, as the host's Apply node makes them."""
    return {"positive": tiny_models.text(1, control=control), "negative": tiny_models.text(2, control=control)}
