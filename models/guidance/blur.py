"""Separable Gaussian blur of feature maps, shared by SAG (2210.00939) and SEG (2408.00760)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Weights (size,) of a centred Gaussian that sum to 1. `sigma` is in cells, `size` is odd."""
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(x: Tensor, sigma: float, size: tuple[int, int]) -> Tensor:
    """x (b, c, h, w), blurred with a kernel of `size` = (rows, columns) and mirrored borders.

    `sigma` is in cells and above 0. Both sizes are odd, and half of each is smaller than that side of the map.
    """
    c = x.shape[1]
    rows, columns = size
    vertical = rearrange(gaussian_weights(rows, sigma).to(x), "k -> 1 1 k 1").expand(c, 1, rows, 1)
    horizontal = rearrange(gaussian_weights(columns, sigma).to(x), "k -> 1 1 1 k").expand(c, 1, 1, columns)
    x = F.pad(x, (columns // 2, columns // 2, rows // 2, rows // 2), mode="reflect")
    return F.conv2d(F.conv2d(x, vertical, groups=c), horizontal, groups=c)
