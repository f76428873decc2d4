"""What other packs, and the host's context windows, do to a model: they take its slots and regroup its rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.samplers
import comfyui_version
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

VERSION = tuple(int(part) for part in comfyui_version.__version__.split(".")[:2])  # of the host
Wrapper = Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]  # round the host's call of the network


def pass_through(model: ModelPatcher) -> ModelPatcher:
    """A model on which another pack sits in the host's slot and hands its conds on."""
    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(
        lambda args: comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )
    )
    return model


def tiled(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Stacks the left and the right half of all pictures in one call, and tells nobody, as tiling packs do."""
    x, t, rows = args["input"], args["timestep"], len(args["input"])
    doubled = {k: torch.cat([v, v]) if torch.is_tensor(v) and len(v) == rows else v for k, v in args["c"].items()}
    left, right = apply_model(torch.cat(x.chunk(2, -1)), torch.cat([t, t]), **doubled).chunk(2)
    return torch.cat([left, right], -1)


def one_by_one(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Sends each chunk through the network by itself with the options of all."""
    n, out = len(args["cond_or_uncond"]), []
    for i in range(n):
        rows = slice(i * len(args["input"]) // n, (i + 1) * len(args["input"]) // n)
        conds = {k: v[rows] if torch.is_tensor(v) else v for k, v in args["c"].items()}
        out.append(apply_model(args["input"][rows], args["timestep"][rows], **conds))
    return torch.cat(out)


def regrouped(model: ModelPatcher, wrapper: Wrapper) -> ModelPatcher:
    """A model whose rows go through `tiled` or `one_by_one`."""
    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def hook_with(steered: ModelPatcher) -> comfy.hooks.HookGroup:
    """A hook that brings what the pack put on a model: its list and its wrappers."""
    options = {
        "reins": list(steered.model_options["transformer_options"].get("reins", [])),
        "wrappers": {kind: {key: list(w) for key, w in of.items()} for kind, of in steered.wrappers.items()},
    }
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))
    return group


def windows(model: ModelPatcher, length: int = 4, overlap: int = 1) -> ModelPatcher:
    """A model with the host's context windows over the pictures of a batch; skips the test on a host without them."""
    node = pytest.importorskip("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    settings = {
        "context_length": length, "context_overlap": overlap, "context_schedule": "standard_static",
        "context_stride": 1, "closed_loop": False, "fuse_method": "flat", "dim": 0, "freenoise": False,
    }  # fmt: skip
    known = inspect.signature(node.execute).parameters
    return node.execute(model, **{key: value for key, value in settings.items() if key in known}).result[0]
