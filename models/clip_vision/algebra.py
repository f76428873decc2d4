"""Arithmetic of image embeddings (unCLIP, 2204.06125, section 3): slerp from one to another, means and text diffs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..numbers import finite
from ..sphere import slerp

OPPOSITE_COSINE = -0.9999
SMALLEST_LENGTH = 1e-4  # of a sum of unit vectors that still has a direction


def slerp_embeds(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The embeddings (b, c) at share `t` of the great circle from a (b, c) to b (b, c).

    Raises ValueError if an embedding is zero, or if two of them point in opposite directions.
    """
    check_directions(a, "a")
    check_directions(b, "b")
    cosines = functional.cosine_similarity(a, b, dim=-1)
    if (cosines < OPPOSITE_COSINE).any():
        raise ValueError(
            f"Two embeddings should have a shortest way between them, but these point in opposite directions (cosine "
            f"{cosines.min():.5f}). Choose other pictures, or go by way of a third."
        )
    return slerp(a, b, t)


def check_directions(embeds: Tensor, name: str) -> None:
    """Raises ValueError if one of the embeddings (b, c) is zero."""
    if not (embeds.norm(dim=-1) > 0).all():
        raise ValueError(
            f"{name} should hold embeddings that point somewhere, but one is all zeros. Encode a picture with CLIP "
            f"Vision Encode."
        )


def frame_times(t: float, frames: int) -> list[float]:
    """The time of each frame: `t` for a single frame, else equal steps from 0 to 1 with both ends."""
    return [t] if frames == 1 else [i / (frames - 1) for i in range(frames)]


def parse_mean_weights(text: str, count: int) -> list[float]:
    """The weights in a comma list, one for each of `count` outputs. An empty text means that all are 1.

    Raises ValueError if the text does not hold `count` finite numbers, or if all of them are 0.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        weights = [finite(part) for part in parts or ["1"] * count]
    except ValueError:
        raise ValueError(
            f"weights: {text!r} is not a list of numbers. Write one per connected output, such as 1, 0.5."
        ) from None
    if len(weights) != count:
        raise ValueError(
            f"weights should be one number for each of the {count} connected outputs, but are {len(weights)}. Write as "
            f"many, or none for equal weights."
        )
    if not any(weights):
        raise ValueError("weights should not all be 0, for nothing would be left. Write at least one other number.")
    return weights


def mean_directions(embeds: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean (1, ..., c) of the directions of embeds (n, ..., c), as long as these are on average.

    A negative weight turns a direction round. Its length counts as that of a positive weight. If only one weight is
    not 0, the values of its embedding are kept.
    """
    used = [i for i, weight in enumerate(weights) if weight]
    if len(used) == 1:
        return embeds[used] * (1 if weights[used[0]] > 0 else -1)
    share = torch.tensor(weights).to(embeds).view(-1, *[1] * (embeds.ndim - 1))
    lengths = embeds.norm(dim=-1, keepdim=True)
    total = (functional.normalize(embeds, dim=-1) * share).sum(0, keepdim=True)
    length = (lengths * share.abs()).sum(0, keepdim=True) / share.abs().sum()
    return functional.normalize(total, dim=-1) * length


def mean_embeds(embeds: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean (1, c) of the directions of embeds (n, c), see `mean_directions`.

    Raises ValueError if an embedding is zero, or if the weighted directions cancel each other.
    """
    check_directions(embeds, "Every output")
    share = torch.tensor(weights).to(embeds)
    if (share @ functional.normalize(embeds, dim=-1)).norm() < SMALLEST_LENGTH * share.abs().sum():
        raise ValueError(
            "The mean of embeddings should point somewhere, but with these weights they cancel each other. Change "
            "one of the weights."
        )
    return mean_directions(embeds, weights)


def text_diff(source: Tensor, target: Tensor) -> Tensor:
    """normalise(z_t - z_t0), a unit vector (1, c), from the embeddings of two texts (1, c).

    Raises ValueError if the embeddings are the same.
    """
    difference = functional.normalize(target, dim=-1) - functional.normalize(source, dim=-1)
    if difference.norm() < SMALLEST_LENGTH:
        raise ValueError(
            "source and target should say different things, but to this text encoder they are the same, so there is "
            "no direction from one to the other. Change one of them."
        )
    return functional.normalize(difference, dim=-1)


def move_by_text(embeds: Tensor, diff: Tensor, theta: float) -> Tensor:
    """slerp(z_i, z_d, theta), (b, c), from pictures (b, c) and a text diff (1, c). Each picture keeps its length.

    Raises ValueError if a picture is zero, or if it points in the direction opposite to the diff.
    """
    return slerp_embeds(embeds, diff.to(embeds) * embeds.norm(dim=-1, keepdim=True), theta)
