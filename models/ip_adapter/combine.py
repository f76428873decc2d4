"""IP-Adapter (2308.06721): ways to combine the embeddings of several pictures into one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..numbers import finite
from ..sphere import slerp

Combine = Literal["concat", "average", "norm average", "add", "subtract", "slerp"]
COMBINES: tuple[Combine, ...] = ("concat", "average", "norm average", "add", "subtract", "slerp")


def parse_weights(text: str, count: int) -> Tensor:
    """The weights (count,) in a comma list of at most `count` numbers. Those that are not in the list are 1.

    Raises ValueError if the text is not a list of finite numbers, or if it is too long.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        weights = [finite(part) for part in parts]
    except ValueError:
        raise ValueError(f"image_weights: {text!r} is not a list of numbers. Write one per image: 1, 0.5, 2.") from None
    if len(weights) > count:
        raise ValueError(f"image_weights has {len(weights)} numbers for {count} images. Give one per image or fewer.")
    return torch.tensor(weights + [1.0] * (count - len(weights)))


def combine(embeds: Tensor, weights: Tensor, how: Combine) -> Tensor:
    """The embeddings (images, ..., c) with weights (images,), combined into one: (1, ..., c).

    `how` is not "concat", which combines nothing. Raises ValueError if the weights are no shares of one picture.
    """
    weighted = embeds * _per_image(weights, embeds)
    match how:
        case "add":
            return weighted.sum(0, keepdim=True)
        case "subtract":
            return weighted[:1] - weighted[1:].mean(0, keepdim=True) if len(embeds) > 1 else weighted
        case "slerp":
            return _slerp_all(embeds, _share(weights, how))
    share = _per_image(_share(weights, how), embeds)
    if how == "average":
        return (embeds * share).sum(0, keepdim=True)
    lengths = embeds.norm(dim=-1, keepdim=True)
    mean = (embeds / lengths.clamp_min(1e-12) * share).sum(0, keepdim=True)
    return mean * (lengths * share).sum(0, keepdim=True)


def _share(weights: Tensor, how: str) -> Tensor:
    if (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(
            f"image_weights: {how} shares one picture out, so weights must be 0 or more and not all 0, but they are "
            f"{', '.join(f'{weight:g}' for weight in weights.tolist())}. Use add or subtract for negative ones."
        )
    return weights / weights.sum()


def _per_image(weights: Tensor, embeds: Tensor) -> Tensor:
    return weights.to(embeds).view(-1, *[1] * (embeds.ndim - 1))


def _slerp_all(embeds: Tensor, share: Tensor) -> Tensor:
    """Slerp from picture to picture. With two pictures of weights a and b it stops at b / (a + b) of the way."""
    combined, gone = embeds[:1], share[:1].sum()
    for i in range(1, len(embeds)):
        gone = gone + share[i]
        if share[i] > 0:
            combined = slerp(combined, embeds[i : i + 1], float(share[i] / gone))
    return combined


def copy_logits(weights: Tensor) -> Tensor | None:
    """What to add to the logits of each image, (images,), so that an image of weight w counts as w copies of it.

    It is None if all weights (images,) are equal. Raises ValueError if they are no shares of one picture.
    """
    _share(weights, "concat")
    return None if (weights == weights[0]).all() else weights.log()
