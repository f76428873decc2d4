"""Smoothed Energy Guidance (2408.00760)."""

from __future__ import annotations

from torch import Tensor

from ..models.smoothed_energy import blur_queries
from .attention import Attend, Call, Layer, with_queries


def smoothed_attention(blur_sigma: float) -> Layer:
    """Attention with queries blurred over their grid by `blur_sigma` cells; below 0 by infinitely many."""

    def attend_with_blurred_queries(call: Call, below: Attend) -> Tensor:
        return below(with_queries(call, blur_queries(call.q, call.grid(call.q), blur_sigma)))

    return attend_with_blurred_queries
