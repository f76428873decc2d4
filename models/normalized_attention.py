"""Normalized Attention Guidance (2505.21179)."""

from __future__ import annotations

from torch import Tensor


def normalized_guidance(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What leaves a text attention, (b, n, c), pushed away from what the negative's text gives there.

    Extrapolated by `scale` (equation 7), its L1 norm held below `tau` times the positive's, token by token (equations
    8 and 9), and mixed into the positive by `alpha` (equation 10).
    """
    guided = positive + scale * (positive - negative)
    ratio = _norm(guided) / _norm(positive)
    guided = guided * (ratio.clamp_max(tau) / ratio)
    return alpha * guided + (1 - alpha) * positive


def _norm(features: Tensor) -> Tensor:
    return features.float().abs().sum(-1, keepdim=True).clamp_min(1e-12).to(features.dtype).clamp_min(1e-7)
