"""Samplers that call the model past what nodes have put on it, as some packs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from reins.tests.helpers import tiny_models
from torch import Tensor

Denoise = Callable[..., Tensor]


def unprepared(guider: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> Tensor:
    """The host's sampling function with the model's own options, in which no wrapper is."""
    conds = guider.conds
    return comfy.samplers.sampling_function(
        guider.inner_model, x, sigma, conds["negative"], conds["positive"], guider.cfg,
        guider.model_patcher.model_options,
    )  # fmt: skip


def past_guidance(guider: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> Tensor:
    """The network alone, without options."""
    text = guider.conds["positive"][0]["model_conds"]["c_crossattn"].cond.to(x)
    return guider.inner_model.apply_model(x, sigma, c_crossattn=text, transformer_options={})


def run(model: ModelPatcher, denoise: Denoise | None, steps: int = 2, cfg: float = 5.0) -> Tensor:
    """A run by Euler whose predictions come from `denoise`, or from the guider as they should."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool) -> Tensor:
        guider, rows = model.inner_model, x.new_ones([len(x)])
        for i in range(len(sigmas) - 1):
            now = sigmas[i] * rows
            if denoise is None:
                denoised = model(x, now, **extra_args)
            else:
                denoised = denoise(guider, x, now, extra_args["model_options"])
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny_models.text(1), tiny_models.text(2))
    guider.set_cfg(cfg)
    levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    latent = torch.zeros((1, 4, 16, 16))
    return guider.sample(tiny_models.noise(), latent, KSAMPLER(sampler), levels, seed=7, disable_pbar=True)
