"""Smoothed Energy Guidance (2408.00760): Gaussian blur of the attention queries."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor

from .blur import gaussian_blur

INFINITE_ABOVE = 9999.0  # above, the official code takes the mean query


def kernel_size(sigma: float, side: int) -> int:
    """Odd kernel for a Gaussian of `sigma` cells, at most the first odd number that spans a `side` (official code)."""
    return min(math.ceil(6 * sigma) | 1, side | 1)


def blur_queries(q: Tensor, grid: tuple[int, int], sigma: float) -> Tensor:
    """Blur queries (b, h * w, heads * d) over their grid (h, w); `sigma` below 0 gives the mean query."""
    if sigma == 0:
        return q
    if sigma < 0 or sigma > INFINITE_ABOVE:
        return q.mean(1, keepdim=True).expand_as(q)
    h, w = grid
    image = rearrange(q, "b (h w) c -> b c h w", h=h, w=w)
    image = gaussian_blur(image, sigma, (kernel_size(sigma, h), kernel_size(sigma, w)))
    return rearrange(image, "b c h w -> b (h w) c")
