"""Guidance rescale (Lin et al., 2305.08891)."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..models.rescale import rescale_guidance
from .scope import Args, add_post_cfg


def add_rescale(model: ModelPatcher, rescale: float) -> ModelPatcher:
    """A clone of `model` whose result so far, all terms included, is rescaled to the positive's deviation."""

    def rescale_result(args: Args) -> Tensor:
        # The paper scales what the network predicts (eps, v, ...). The host holds x0 = a x + b * prediction, with b
        # one number per image, so subtracting a x leaves the prediction up to a factor that cancels.
        x = args["input"]
        offset = args["model"].model_sampling.calculate_denoised(args["sigma"], torch.zeros_like(x), x)
        return offset + rescale_guidance(args["denoised"] - offset, args["cond_denoised"] - offset, rescale)

    model = model.clone()
    add_post_cfg(model, "Rescale", rescale_result)
    return model
