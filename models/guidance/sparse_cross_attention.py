"""PLADIS (2503.07677): text attention extrapolated from dense to sparse weights."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .entmax import entmax15


def sparse_less_dense(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Sparse less dense attention, (b, n, heads * d), from q (b, n, heads * d), k and v (b, m, heads * d).

    It is (entmax(s) - softmax(s)) V with s = Q K^T / sqrt(d). PLADIS is dense + scale * (sparse - dense) (equation 9).
    `mask` (b or 1, heads or 1, n or 1, m) is added to s, or says which keys are seen. Weights are computed in single
    precision or better. Taking one image at a time bounds their memory.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    images = zip(*(rearrange(t.to(exact), "b n (h d) -> b h n d", h=heads) for t in (q, k, v)), strict=True)
    masks = [None] * len(q) if mask is None else mask.expand(len(q), *mask.shape[1:])
    return torch.stack([_of_image(*image, mask) for image, mask in zip(images, masks, strict=True)]).to(q.dtype)


def _of_image(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return rearrange((entmax15(scores) - scores.softmax(-1)) @ v, "h n d -> n (h d)")
