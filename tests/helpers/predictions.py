"""Guided predictions of a small picture: one alone, or several in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from reins.tests.helpers import h_space, tiny_models
from reins.tests.helpers.tiny_models import noise, text
from torch import Tensor

KINDS = [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW]


def conds(seed: int, **extra: object) -> list[dict]:
    """A prompt as the sampling loop sees it."""
    return [tiny_models.cond(text(seed)[0][0], **extra)]


def denoise(
    model: ModelPatcher, cfg: float = 5.0, sigma: float = 3.0, size: tuple[int, int] = (12, 12), b: int = 1,
    positive: list[dict] | None = None, negative: list[dict] | None = None, x: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One guided prediction (b, c, h, w), of seeded noise if there is no `x`."""
    x = sigma * noise(*size, b=b) if x is None else x
    return tiny_models.denoise(model, x, sigma, positive or conds(1), negative or conds(2), cfg)


def in_one_run(
    model: ModelPatcher, points: Sequence[tuple[Tensor, float]], cfg: float = 5.0, seed: int = 7,
    sigmas: Tensor = h_space.LEVELS, **prompts: list,
) -> list[Tensor]:  # fmt: skip
    """What the model predicts for each (x, sigma) of a run, whose sampler asks for these."""
    found = []

    def loop(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool) -> Tensor:
        found.extend(model(x, x.new_full([len(x)], sigma), **extra_args) for x, sigma in points)
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": text(1), "negative": text(2), **prompts})
    guider.set_cfg(cfg)
    x = points[0][0]
    guider.sample(torch.zeros_like(x), torch.zeros_like(x), KSAMPLER(loop), sigmas, disable_pbar=True, seed=seed)
    return found
