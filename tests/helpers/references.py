"""Formulas written from the papers in a few lines; torch alone, for the tests with a host and without one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blur_by_the_sum(x: Tensor, sigma: float, rows: int, columns: int) -> Tensor:
    """The Gaussian-weighted mean of each cell's neighbours (b, c, h, w); beyond the border the picture is mirrored."""
    padded = F.pad(x, (columns // 2, columns // 2, rows // 2, rows // 2), mode="reflect")
    out = torch.zeros_like(x)
    total = 0.0
    for i in range(rows):
        for j in range(columns):
            weight = float(torch.tensor(-((i - rows // 2) ** 2 + (j - columns // 2) ** 2) / (2 * sigma**2)).exp())
            out += weight * padded[..., i : i + x.shape[-2], j : j + x.shape[-1]]
            total += weight
    return out / total


def entmax_by_bisection(scores: Tensor) -> Tensor:
    """max(s / 2 - tau, 0)^2 with the tau for which they sum to one (equation 12 of 1905.05702 for alpha 1.5)."""
    halved = scores.double() / 2
    low, high = halved.amax(-1, keepdim=True) - 1, halved.amax(-1, keepdim=True)
    for _ in range(100):
        tau = (low + high) / 2
        is_low = ((halved - tau).clamp_min(0) ** 2).sum(-1, keepdim=True) >= 1
        low, high = torch.where(is_low, tau, low), torch.where(is_low, high, tau)
    return (halved - low).clamp_min(0) ** 2


def nag_by_the_paper(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """The guided attention output (b, tokens, c) of 2505.21179, from those of the two prompts."""
    extrapolated = positive + scale * (positive - negative)
    ratio = extrapolated.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    limited = torch.minimum(ratio, torch.full_like(ratio, tau)) / ratio * extrapolated
    return alpha * limited + (1 - alpha) * positive


def apg_by_the_paper(guidance: Tensor, positive: Tensor, eta: float, threshold: float) -> Tensor:
    """The limited and projected guidance (c, h, w) of 2410.02416, for one image."""
    if threshold > 0:
        guidance = guidance * min(1.0, threshold / guidance.norm())
    along = (guidance * positive).sum() / (positive * positive).sum() * positive
    return (guidance - along) + eta * along


def fdg_by_the_paper(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    """A guidance (b, c, h, w) of 2506.19713 with factors on the bands of its pyramid, from `high` down to `low`."""
    if levels == 1:
        return low * x
    weights = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    (h, w), blurred = x.shape[-2:], torch.zeros_like(x)
    for i, down in enumerate(weights):
        for j, across in enumerate(weights):
            blurred += down * across * padded[..., i : i + h, j : j + w]
    coarse, factors = blurred[..., ::2, ::2], [high + (low - high) * i / (levels - 1) for i in range(levels)]

    def enlarged(band: Tensor) -> Tensor:
        return F.interpolate(band, (h, w), mode="bilinear")

    rest = fdg_by_the_paper(coarse, low, factors[1], levels - 1)
    return high * (x - enlarged(coarse)) + enlarged(rest)
