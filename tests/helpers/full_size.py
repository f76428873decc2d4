"""The UNets of SD1.5 and SDXL at their full size, without memory for their weights."""

from __future__ import annotations

from typing import Any

import comfy.ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from reins.tests.helpers import tiny_models

LAYOUTS = {
    "sd15": {
        "model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "num_heads": 8,
        "num_head_channels": -1, "context_dim": 768, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
    },
    "sdxl": {
        "model_channels": 320, "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "num_heads": -1,
        "num_head_channels": 64, "context_dim": 2048, "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
    },
}  # fmt: skip


def unet_config(layout: str) -> dict[str, Any]:
    """The host's settings for the UNet of a layout."""
    return {**tiny_models.unet_config(), **LAYOUTS[layout]}


def unet(layout: str) -> UNetModel:
    """The UNet of a layout, on the meta device."""
    return UNetModel(**unet_config(layout), device="meta", operations=comfy.ops.disable_weight_init)
