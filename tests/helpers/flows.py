"""Guided predictions of the tiny transformers in one run, and what their networks predict for each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers.predictions import in_one_run
from reins.tests.helpers.tiny_transformers import latent, noise_like, text
from torch import Tensor

STEPS, CFG = 4, 4.0
Point = tuple[Tensor, float]


def schedule(model: ModelPatcher) -> Tensor:
    """The noise levels of a run of four steps."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)


def points_of(
    family: str, model: ModelPatcher, first: int = 1, count: int = 1, seed: int = 7, **size: int | None
) -> list[Point]:  # fmt: skip
    """Noisy latents (b, c, h, w) or (b, c, t, h, w) with the noise levels of steps of the run, from the `first` on."""
    sigmas = schedule(model)[first : first + count].tolist()
    return [(sigma * noise_like(latent(family, **size), seed + i), sigma) for i, sigma in enumerate(sigmas)]


def prompts(family: str) -> dict[str, list]:
    """Two texts of different length."""
    return {"positive": text(1, 5, family), "negative": text(2, 7, family)}


def guided(
    family: str, model: ModelPatcher, points: Sequence[Point], cfg: float = CFG, **conds: list
) -> list[Tensor]:  # fmt: skip
    """What the model predicts for each point of a run."""
    return in_one_run(model, points, cfg, sigmas=schedule(model), **{**prompts(family), **conds})


def both(family: str, model: ModelPatcher, points: Sequence[Point]) -> list[tuple[Tensor, Tensor]]:
    """What the model predicts for the positive and for the negative alone, at each point."""
    positive, negative = (
        guided(family, model, points, 1.0, positive=prompt) for prompt in prompts(family).values()
    )  # fmt: skip
    return list(zip(positive, negative, strict=True))


def outputs(family: str, model: ModelPatcher, point: Point) -> list[Tensor]:
    """What the network puts out for the positive and for the negative alone: a velocity."""
    found: list[Tensor] = []
    hook = model.model.diffusion_model.register_forward_hook(lambda _, inputs, output: found.append(output.float()))
    try:
        both(family, model, [point])
    finally:
        hook.remove()
    return found


def of_output(model: ModelPatcher, output: Tensor, point: Point) -> Tensor:
    """The predicted picture that a network's output stands for."""
    x, sigma = point
    return model.get_model_object("model_sampling").calculate_denoised(torch.full((len(x),), sigma), output, x)
