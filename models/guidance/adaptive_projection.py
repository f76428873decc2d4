"""Adaptive Projected Guidance (2410.02416): the part of the guidance that oversaturates pictures loses weight."""

from __future__ import annotations

from torch import Tensor

from ..precision import at_least_float32


def project_guidance(guidance: Tensor, positive: Tensor, eta: float, norm_threshold: float) -> Tensor:
    """The guidance (b, c, h, w) with its part along `positive` (b, c, h, w) times `eta` (algorithm 1 of the paper).

    `guidance` (b, c, h, w) is the difference of the two predictions, with its momentum. It is first made no longer than
    `norm_threshold`, per image. A threshold of 0 allows any length.
    """
    if norm_threshold > 0:
        guidance = guidance * (norm_threshold / _dot(guidance, guidance).sqrt().clamp_min(1e-12)).clamp_max(1)
    parallel = positive * (_dot(guidance, positive) / _dot(positive, positive).clamp_min(1e-12))
    return guidance + (eta - 1) * parallel


def _dot(a: Tensor, b: Tensor) -> Tensor:
    dims = tuple(range(1, a.ndim))
    exact = at_least_float32(a.dtype)
    return (a.to(exact) * b.to(exact)).sum(dims, keepdim=True).to(a.dtype)
