"""Smoothed Energy Guidance (2408.00760): Gaussian blur of the attention queries."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor

from .blur import gaussian_blur

INFINITE_ABOVE = 9999.0  # for a larger sigma the official code takes the mean query


def kernel_size(sigma: float, side: int) -> int:
    """The odd length of a kernel for a Gaussian of `sigma` cells.

    As in the official code it is at most the first odd number that spans `side`.
    """
    return min(math.ceil(6 * sigma) | 1, side | 1)


def blur_queries(q: Tensor, grid: tuple[int, int], sigma: float) -> Tensor:
    """The queries (b, h * w, heads * d), blurred over their grid (h, w). A `sigma` below 0 gives the mean query."""
    if sigma == 0:
        return q
    if sigma < 0 or sigma > INFINITE_ABOVE:
        return q.mean(1, keepdim=True).expand_as(q)
    h, w = grid
    image = rearrange(q, "b (h w) c -> b c h w", h=h, w=w)
    image = gaussian_blur(image, sigma, (kernel_size(sigma, h), kernel_size(sigma, w)))
    return rearrange(image, "b c h w -> b (h w) c")
