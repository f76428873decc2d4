"""Which family of models a UNet is of."""

from __future__ import annotations

import comfy.model_base
import comfy.supported_models
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher


def family_of(unet: UNetModel, model: ModelPatcher) -> str:
    """SD1.x, SD2.x, SDXL or SVD, by the blocks of the network and by the host's class; a description for others."""
    if any(isinstance(layer, VideoResBlock) for block in unet.input_blocks for layer in block):
        return "SVD"
    if isinstance(model.model.model_config, comfy.supported_models.SD20):
        return "SD2.x"
    if unet.num_classes is None:
        return "SD1.x"
    return "SDXL" if isinstance(model.model, comfy.model_base.SDXL) else "of another family"
