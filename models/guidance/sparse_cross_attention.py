"""PLADIS (2503.07677): text attention extrapolated from dense to sparse weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..precision import at_least_float32
from .entmax import entmax15_and_softmax

AT_ONCE = 2**20  # weights of all images together


def sparser_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Attention (b, n, heads * d) from dense to sparse, of q (b, n, heads * d), k and v (b, m, heads * d).

    It is (softmax(s) + scale * (entmax(s) - softmax(s))) V with s = Q K^T / sqrt(d) (equation 9).
    """

    def weights(scores: Tensor) -> Tensor:
        sparse, dense = entmax15_and_softmax(scores)
        return torch.lerp(dense, sparse, scale)

    return _attended(q, k, v, heads, None, weights)


def sparse_less_dense(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Sparse less dense attention, (b, n, heads * d), from q (b, n, heads * d), k and v (b, m, heads * d).

    It is (entmax(s) - softmax(s)) V. PLADIS is dense + scale * (sparse - dense).
    `mask` (b or 1, heads or 1, n or 1, m) is added to s, or says which keys are seen.
    """

    def weights(scores: Tensor) -> Tensor:
        sparse, dense = entmax15_and_softmax(scores)
        return sparse - dense

    return _attended(q, k, v, heads, mask, weights)


def _attended(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, weights: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """Attention (b, n, heads * d) with weights that are a function of the scores (b, heads, n, m).

    Weights are computed in single precision or better. Many of them are computed for one image at a time, which bounds
    their memory.
    """
    exact = at_least_float32(q.dtype)
    # From (b, n, heads * d) to (b, heads, n, d). This is hot: einops takes three times as long.
    parts = [part.to(exact).view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v)]
    if heads * q.shape[1] * k.shape[1] * len(q) <= AT_ONCE:
        return _of_images(*parts, mask, weights).to(q.dtype)
    masks = [None] * len(q) if mask is None else mask.expand(len(q), *mask.shape[1:]).split(1)
    images = zip(*(part.split(1) for part in parts), masks, strict=True)
    return torch.cat([_of_images(*image, weights) for image in images]).to(q.dtype)


def _of_images(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, weights: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """The same (b, n, heads * d) for q (b, heads, n, d), k and v (b, heads, m, d)."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (weights(scores) @ v).transpose(1, 2).flatten(2)
