"""CFG-Zero* (2503.18886): the negative's velocity scaled to fit the positive's before the two are extrapolated."""

from __future__ import annotations

from torch import Tensor

from ..precision import at_least_float32


def optimal_scale(positive: Tensor, negative: Tensor) -> Tensor:
    """The s (b, 1, 1, 1) that brings s * negative closest to positive, both velocities (b, c, h, w) (equation 8)."""
    exact = at_least_float32(positive.dtype)
    v_c, v_u = positive.to(exact), negative.to(exact)
    dims = tuple(range(1, positive.ndim))
    scale = (v_c * v_u).sum(dims, keepdim=True) / v_u.square().sum(dims, keepdim=True).clamp_min(1e-8)
    return scale.to(positive.dtype)
