"""Entmax with alpha 1.5 (Peters, Niculae and Martins 2019, 1905.05702): a softmax that gives exact zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def entmax15(scores: Tensor) -> Tensor:
    """Probabilities (..., n) of `scores` (..., n) over the last dimension: max(scores / 2 - tau, 0)^2.

    Sorting gives the threshold tau exactly (algorithm 2 of the paper). For each k there is one tau with which the
    squares of the k largest scores sum to 1. The right k is the largest whose tau lies below its smallest score.
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
