"""Frequency-Decoupled Guidance (2506.19713): a factor on each band of the guidance in a Laplacian pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # the kernel of Burt and Adelson's pyramid


def split_bands(x: Tensor, levels: int) -> list[Tensor]:
    """The bands of x (b, c, h, w), each (b, c, h, w), the highest frequencies first. Their sum is x.

    There are `levels` of them, and fewer if a side of x cannot be halved so often.
    """
    if levels == 1 or min(x.shape[-2:]) == 1:
        return [x]
    low = _half(x)
    coarse = [_enlarged(band, x.shape[-2:]) for band in split_bands(low, levels - 1)]
    return [x - sum(coarse), *coarse]


def band_factors(low: float, high: float, levels: int) -> Sequence[float]:
    """The factors of `levels` bands, the highest frequencies first: from `high` to `low` in equal steps."""
    return [low + (high - low) * (levels - 1 - i) / max(levels - 1, 1) for i in range(levels)]


def weight_bands(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    """x with factors on its bands: `low` on the coarsest band, `high` on the finest.

    x is (b, c, h, w), or a video (b, c, t, h, w), in which each frame has bands alone.
    """
    if x.ndim == 5:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(weight_bands(frames, low, high, levels), "(b t) c h w -> b c t h w", b=len(x))
    bands = split_bands(x, levels)
    return sum(factor * band for factor, band in zip(band_factors(low, high, len(bands)), bands, strict=True))


def _half(x: Tensor) -> Tensor:
    """Every second cell of the blurred x. Borders repeat, so that sides may have any length."""
    c = x.shape[1]
    kernel = torch.tensor(BINOMIAL, device=x.device, dtype=x.dtype)
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 5, 1).expand(c, 1, 5, 1), groups=c, stride=(2, 1))
    return F.conv2d(x, kernel.view(1, 1, 1, 5).expand(c, 1, 1, 5), groups=c, stride=(1, 2))


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
