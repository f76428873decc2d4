"""PLADIS (2503.07677): text attention extrapolated from dense to sparse weights."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .entmax import entmax15


def sparse_less_dense(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Sparse less dense attention, (b, n, heads * d), from q (b, n, heads * d), k and v (b, m, heads * d).

    It is (entmax(s) - softmax(s)) V with s = Q K^T / sqrt(d). PLADIS is dense + scale * (sparse - dense) (equation 9).
    Weights are computed in single precision or better. Taking one image at a time bounds their memory.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    images = zip(*(rearrange(t.to(exact), "b n (h d) -> b h n d", h=heads) for t in (q, k, v)), strict=True)
    return torch.stack([_of_image(*image) for image in images]).to(q.dtype)


def _of_image(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    return rearrange((entmax15(scores) - scores.softmax(-1)) @ v, "h n d -> n (h d)")
