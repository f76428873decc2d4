"""Entmax with alpha 1.5 (Peters, Niculae and Martins 2019, 1905.05702): a softmax that gives exact zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def entmax15(scores: Tensor) -> Tensor:
    """Probabilities (..., n) of `scores` (..., n) over the last dimension: max(scores / 2 - tau, 0)^2.

    The threshold tau is found exactly, by sorting (algorithm 2 of the paper): of each number k of largest scores it is
    known which tau makes their squares sum to 1, and the largest k whose own tau lies below its last score is right.
    """
    halved = scores / 2
    halved = halved - halved.amax(-1, keepdim=True)
    falling = halved.sort(-1, descending=True).values
    k = torch.arange(1, falling.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    mean, mean_of_squares = falling.cumsum(-1) / k, falling.square().cumsum(-1) / k
    spread = k * (mean_of_squares - mean.square())
    tau = mean - ((1 - spread) / k).clamp_min(0).sqrt()
    size = (tau <= falling).sum(-1, keepdim=True)
    return (halved - tau.gather(-1, size - 1)).clamp_min(0).square()
