"""Guidance rescale (2305.08891, section 3.4): the guided prediction gets the deviation of the positive one."""

from __future__ import annotations

from torch import Tensor


def rescale_guidance(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """`guided` (b, c, h, w), scaled per image towards the standard deviation of `positive` (b, c, h, w).

    `rescale` is phi of equations 15 and 16.
    """
    dims = tuple(range(1, guided.ndim))
    deviation_wanted = positive.std(dims, keepdim=True)
    deviation = guided.std(dims, keepdim=True).clamp_min(1e-8)
    return guided * (rescale * deviation_wanted / deviation + (1 - rescale))
