"""Guidance rescale (Lin et al., 2305.08891, section 3.4): the sum gets the deviation of the positive prediction."""

from __future__ import annotations

from torch import Tensor


def rescale_guidance(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """`guided` (b, c, h, w) scaled per image towards the standard deviation of `positive` (equations 15 and 16)."""
    dims = tuple(range(1, guided.ndim))
    wanted = positive.std(dims, keepdim=True)
    found = guided.std(dims, keepdim=True).clamp_min(1e-8)
    return guided * (rescale * wanted / found + (1 - rescale))
