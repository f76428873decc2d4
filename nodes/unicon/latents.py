"""Latents of images and the same number of conditions, one half after the other."""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.utils
import torch
from torch import Tensor

from ...models.numbers import CELL

NOISE_KEY = "reins_condition_noise"
Given = tuple[Tensor, Tensor | None]  # a latent (b, c, h, w) and its noise mask


def join(image: Given | None, condition: Given | None, pixels: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """Returns a latent (2 * b, c, h, w) of images, then conditions. A half that is not given is empty.

    Raises ValueError if images and conditions differ in size.
    """
    given = [latent for latent, _ in filter(None, (image, condition))]
    if len(given) == 2 and given[0].shape[1:] != given[1].shape[1:]:
        raise ValueError(
            f"image and condition should be of one size, but are {tuple(given[0].shape)} and {tuple(given[1].shape)}. "
            f"Scale the picture before its VAE Encode."
        )
    width, height = pixels
    shape = tuple(given[0].shape[1:]) if given else (4, height // CELL, width // CELL)
    count = max([batch_size, *(len(latent) for latent in given)])
    halves = [
        torch.zeros(count, *shape) if half is None else comfy.utils.repeat_to_batch_size(half[0], count)
        for half in (image, condition)
    ]
    latent = {"samples": torch.cat([half.to(halves[0]) for half in halves])}
    masks = [None if half is None else half[1] for half in (image, condition)]
    if any(mask is not None for mask in masks):
        latent["noise_mask"] = torch.cat([_mask(mask, (count, *shape)) for mask in masks])
    return latent


def _mask(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Returns a mask (count, h, w) of the latent's cells, which is 1 everywhere if none is given."""
    if mask is None:
        return torch.ones(shape[0], *shape[2:])
    return comfy.sampler_helpers.prepare_mask(mask, shape, "cpu")[:, 0]


def split(latent: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the images and the conditions (b, c, h, w) of a joint latent, each with what else it holds."""
    halves = []
    for i in range(2):
        half = {**latent, "samples": latent["samples"].chunk(2)[i]}
        if "noise_mask" in latent:
            mask = latent["noise_mask"]
            half["noise_mask"] = mask.chunk(2)[i] if len(mask) == len(latent["samples"]) else mask
        halves.append(half)
    return halves[0], halves[1]
