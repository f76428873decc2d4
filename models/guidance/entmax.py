"""Entmax with alpha 1.5 (Peters, Niculae and Martins 2019, 1905.05702): a softmax that gives exact zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import at_least_float32


def entmax15(scores: Tensor) -> Tensor:
    """Probabilities (..., n) of `scores` (..., n) over the last dimension: max(scores / 2 - tau, 0)^2."""
    exact = scores.to(at_least_float32(scores.dtype))
    return _entmax15_of_halves(_below_greatest(exact) / 2).to(scores.dtype)


def entmax15_and_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse and dense probabilities of `scores` over the last dimension, (..., n) each.

    Both need the scores less their greatest. On a CPU torch's softmax of few numbers takes several times as long as the
    operations that are left of it here.
    """
    shifted = _below_greatest(scores)
    exponentials = shifted.exp()
    dense = exponentials / exponentials.sum(-1, keepdim=True)
    del exponentials  # a large network has the most memory in use here
    return _entmax15_of_halves(shifted.div_(2)), dense


def _below_greatest(scores: Tensor) -> Tensor:
    return scores - scores.amax(-1, keepdim=True)


def _entmax15_of_halves(halves: Tensor) -> Tensor:
    """Probabilities (..., n) of halved scores (..., n), of which the greatest is 0.

    Sorting gives the threshold tau exactly (algorithm 2 of the paper). The right k is the largest whose tau lies below
    its smallest score.
    """
    falling = halves.sort(-1, descending=True).values
    tau = _thresholds(falling)
    size = (tau <= falling).sum(-1, keepdim=True)
    return (halves - tau.gather(-1, size - 1)).clamp_min(0).square()


def _thresholds(falling: Tensor) -> Tensor:
    """For each k the tau (..., n) with which the squares of the k largest scores sum to 1, of sorted scores (..., n).

    It is (sum - sqrt(sum^2 - k * (sum of squares - 1))) / k. The root is of sum^2 + k - k * (sum of squares), which is
    at least 0 at the right k. If it is below 0, tau becomes the mean, which lies above the smallest score, and does not
    count. (Roots of numbers below 0 are slow on a CPU.)
    """
    k = torch.arange(1, falling.shape[-1] + 1, device=falling.device, dtype=falling.dtype)
    total, squares = falling.cumsum(-1), falling.square().cumsum_(-1)
    root = torch.addcmul(k, total, total).addcmul_(k, squares, value=-1).clamp_min_(0).sqrt_()
    return (total - root).div_(k)
