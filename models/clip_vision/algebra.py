"""Arithmetic of image embeddings: turning one into another (Shoemake 1985), means, text diffs (2204.06125, 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..numbers import finite
from ..sphere import slerp

OPPOSITE = -0.9999  # cosine
NOTHING = 1e-4  # of the length of unit vectors


def slerp_embeds(a: Tensor, b: Tensor, t: float) -> Tensor:
    """slerp of embeddings (b, c); ValueError where no shortest way leads from one to the other."""
    check_directions(a, "a")
    check_directions(b, "b")
    cosines = functional.cosine_similarity(a, b, dim=-1)
    if (cosines < OPPOSITE).any():
        raise ValueError(
            f"Two embeddings should have a shortest way between them, but these point in opposite directions (cosine "
            f"{cosines.min():.5f}). Choose other pictures, or go by way of a third."
        )
    return slerp(a, b, t)


def check_directions(embeds: Tensor, name: str) -> None:
    """ValueError where one of the embeddings (b, c) is zero, as that of no picture is."""
    if not (embeds.norm(dim=-1) > 0).all():
        raise ValueError(
            f"{name} should hold embeddings that point somewhere, but one is all zeros. Encode a picture with CLIP "
            f"Vision Encode."
        )


def frame_times(t: float, frames: int) -> list[float]:
    """t alone for one frame; for more, evenly from 0 to 1, both included."""
    return [t] if frames == 1 else [i / (frames - 1) for i in range(frames)]


def parse_mean_weights(text: str, count: int) -> list[float]:
    """As many weights as outputs, of a comma list; all 1 for an empty text. ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = [finite(part) for part in parts or ["1"] * count]
    except ValueError:
        raise ValueError(
            f"weights: {text!r} is not a list of numbers. Write one per connected output, such as 1, 0.5."
        ) from None
    if len(found) != count:
        raise ValueError(
            f"weights should be one number for each of the {count} connected outputs, but are {len(found)}. Write as "
            f"many, or none for equal weights."
        )
    if not any(found):
        raise ValueError("weights should not all be 0, for nothing would be left. Write at least one other number.")
    return found


def mean_directions(embeds: Tensor, weights: Sequence[float]) -> Tensor:
    """(1, ..., c) of (n, ..., c): the weighted mean of directions, as long as the inputs are in the mean.

    A negative weight turns a direction round; its length counts as that of a positive one. One alone keeps its values.
    """
    kept = [i for i, weight in enumerate(weights) if weight]
    if len(kept) == 1:
        return embeds[kept] * (1 if weights[kept[0]] > 0 else -1)
    share = torch.tensor(weights).to(embeds).view(-1, *[1] * (embeds.ndim - 1))
    lengths = embeds.norm(dim=-1, keepdim=True)
    total = (functional.normalize(embeds, dim=-1) * share).sum(0, keepdim=True)
    length = (lengths * share.abs()).sum(0, keepdim=True) / share.abs().sum()
    return functional.normalize(total, dim=-1) * length


def mean_embeds(embeds: Tensor, weights: Sequence[float]) -> Tensor:
    """mean_directions of embeddings (n, c); ValueError where they cancel each other."""
    check_directions(embeds, "Every output")
    share = torch.tensor(weights).to(embeds)
    if (share @ functional.normalize(embeds, dim=-1)).norm() < NOTHING * share.abs().sum():
        raise ValueError(
            "The mean of embeddings should point somewhere, but with these weights they cancel each other. Change "
            "one of the weights."
        )
    return mean_directions(embeds, weights)


def text_diff(source: Tensor, target: Tensor) -> Tensor:
    """normalise(z_t - z_t0) of two texts (1, c), as a unit vector (1, c); ValueError where they say the same."""
    difference = functional.normalize(target, dim=-1) - functional.normalize(source, dim=-1)
    if difference.norm() < NOTHING:
        raise ValueError(
            "source and target should say different things, but to this text encoder they are the same, so there is "
            "no direction from one to the other. Change one of them."
        )
    return functional.normalize(difference, dim=-1)


def move_by_text(embeds: Tensor, diff: Tensor, theta: float) -> Tensor:
    """slerp(z_i, z_d, theta) of pictures (b, c) and a diff (1, c); each picture keeps its length."""
    return slerp_embeds(embeds, diff.to(embeds) * embeds.norm(dim=-1, keepdim=True), theta)
