"""Normalized Attention Guidance (2505.21179): text attention pushed away from that of the negative."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized_guidance(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """The output (b, n, c) of a text attention, pushed away from the output for the negative.

    `positive` and `negative` (b, n, c) are extrapolated by `scale` (equation 7). The L1 norm of each token is held
    below `tau` times that of the positive (equations 8 and 9). `alpha` mixes that into the positive (equation 10).
    """
    exact = torch.promote_types(positive.dtype, torch.float32)
    plain, away = positive.to(exact), negative.to(exact)
    guided = torch.lerp(away, plain, 1 + scale)
    factor = (_norm(plain) * tau / _norm(guided)).clamp_max(1.0)
    return torch.lerp(plain, guided * factor, alpha).to(positive.dtype)


def _norm(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, 1, -1, keepdim=True).clamp_min(1e-12)
