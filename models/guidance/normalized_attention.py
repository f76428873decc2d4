"""Normalized Attention Guidance (2505.21179)."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized_guidance(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What leaves a text attention, (b, n, c), pushed away from what the negative's text gives there.

    Extrapolated by `scale` (equation 7), its L1 norm held below `tau` times the positive's, token by token (equations
    8 and 9), and mixed into the positive by `alpha` (equation 10).
    """
    exact = torch.promote_types(positive.dtype, torch.float32)
    plain, away = positive.to(exact), negative.to(exact)
    guided = plain + scale * (plain - away)
    ratio = _norm(guided) / _norm(plain)
    guided = guided * (ratio.clamp_max(tau) / ratio)
    return (alpha * guided + (1 - alpha) * plain).to(positive.dtype)


def _norm(features: Tensor) -> Tensor:
    return features.abs().sum(-1, keepdim=True).clamp_min(1e-12)
