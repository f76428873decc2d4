"""PLADIS (2503.07677): text attention extrapolated from dense to sparse weights."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .entmax import entmax15

AT_ONCE = 2**20  # weights of all images together


def sparse_less_dense(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Sparse less dense attention, (b, n, heads * d), from q (b, n, heads * d), k and v (b, m, heads * d).

    It is (entmax(s) - softmax(s)) V with s = Q K^T / sqrt(d). PLADIS is dense + scale * (sparse - dense) (equation 9).
    `mask` (b or 1, heads or 1, n or 1, m) is added to s, or says which keys are seen. Weights are computed in single
    precision or better. Many of them are computed for one image at a time, which bounds their memory.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    parts = [rearrange(part.to(exact), "b n (h d) -> b h n d", h=heads) for part in (q, k, v)]
    if heads * q.shape[1] * k.shape[1] * len(q) <= AT_ONCE:
        return _differences(*parts, mask).to(q.dtype)
    masks = [None] * len(q) if mask is None else mask.expand(len(q), *mask.shape[1:]).split(1)
    images = zip(*(part.split(1) for part in parts), masks, strict=True)
    return torch.cat([_differences(*image) for image in images]).to(q.dtype)


def _differences(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same for q (b, heads, n, d), k and v (b, heads, m, d)."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return rearrange((entmax15(scores) - scores.softmax(-1)) @ v, "b h n d -> b n (h d)")
