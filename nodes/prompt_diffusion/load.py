"""Makes a Prompt Diffusion of a file, whose weights belong to the host, as the host makes its ControlNets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from torch import Tensor

from ...engine.loading import Outline, check_finite, check_tensors
from ...models.prompt_diffusion.files import control_part
from ...models.prompt_diffusion.network import PAIR, QUERY, Stems
from .control import PromptDiffusion, Widths, signed

HEADS, HEAD_WIDTH = 8, 8  # SD1.5 has 8 heads, a narrow network has heads of 8 channels
LINEAR_HEAD_WIDTH = 64  # of all models with linear projections
# What the host's detection and its layers raise for shapes that do not belong together.
MISFITS = (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError)


def make_prompt_diffusion(weights: Mapping[str, Tensor], name: str) -> PromptDiffusion:
    """Returns a Prompt Diffusion without an example. `name` is how the user calls the file.

    Raises ValueError if the file is no Prompt Diffusion.
    """
    part = control_part(weights, name)
    check_finite(part.weights, name)
    tensors = part.for_host()
    try:
        config = _config(tensors)
        outline = _network(config, Outline, torch.device("meta"), torch.float32).state_dict()
    except MISFITS as error:
        raise ValueError(
            f"{name} should have the layout of a ControlNet, but its tensors do not show one: "
            f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}. Download the file again."
        ) from error
    check_tensors({part.own_name(key): tuple(value.shape) for key, value in outline.items()}, part.weights, name)
    return _control(tensors, config, name)


def _control(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> PromptDiffusion:
    """Returns a Prompt Diffusion with the types and devices that the host chooses for a ControlNet.

    The host has no function for this alone (0.33: it is inside load_controlnet_state_dict).
    """
    management = comfy.model_management
    stored = comfy.utils.weight_dtype(tensors)
    supported = [torch.float16, torch.bfloat16, torch.float32]
    dtype = management.unet_dtype(model_params=-1, supported_dtypes=supported, weight_dtype=stored)
    load_device = management.get_torch_device()
    cast = management.unet_manual_cast(dtype, load_device)
    network = _network(config, comfy.ops.pick_operations(dtype, cast), management.unet_offload_device(), dtype)
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    control = PromptDiffusion(
        control_model=network, load_device=load_device, manual_cast_dtype=cast, preprocess_image=signed
    )
    control.name, control.widths = name, Widths(config["model_channels"], config["context_dim"])
    return control


def _config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the host's settings of a network by its shapes, which do not show the number of heads."""
    config = comfy.model_detection.detect_unet_config(tensors, "")
    if config is None or "model_channels" not in config:
        raise LookupError("input_blocks.0.0.weight")
    config.pop("out_channels")
    if config["use_linear_in_transformer"]:
        return {**config, "num_heads": -1, "num_head_channels": LINEAR_HEAD_WIDTH}
    return {**config, "num_heads": min(HEADS, config["model_channels"] // HEAD_WIDTH), "num_head_channels": -1}


def _network(config: Mapping[str, Any], operations: type, device: torch.device, dtype: torch.dtype) -> ControlNet:
    place = {"operations": operations, "device": device, "dtype": dtype}
    network = ControlNet(**config, hint_channels=PAIR + QUERY, **place)
    network.input_hint_block = Stems(config["model_channels"], **place)
    return network
