"""Self-Attention Guidance (2210.00939): how much each cell is attended, and a picture blurred where that is much."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .blur import gaussian_blur


def attention_received(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """How much each key is attended, (b, keys), from q (b, queries, heads * d) and k (b, keys, heads * d).

    Heads are averaged and queries summed (section 4.2). The average over the keys is 1, also if another patch has
    merged queries.
    """
    scale = (q.shape[-1] // heads) ** -0.5
    ratio = k.shape[1] / q.shape[1]
    received = []
    for q_one, k_one in zip(q.float(), k.float(), strict=True):  # one image at a time bounds the memory of the map
        q_heads = rearrange(q_one, "n (heads d) -> heads n d", heads=heads)
        k_heads = rearrange(k_one, "n (heads d) -> heads d n", heads=heads)
        probabilities = torch.softmax(q_heads @ k_heads * scale, dim=-1)
        received.append(probabilities.mean(0).sum(0) * ratio)
    return torch.stack(received)


def kernel_length(sigma: float, kernel_size: int) -> int:
    """The odd length of a blur kernel in cells: `kernel_size`, or 6 sigma + 1 if that is 0. Length 1 is no blur."""
    return (kernel_size or int(6 * sigma + 1)) | 1


def kernel_sizes(sigma: float, kernel_size: int, shape: tuple[int, int]) -> tuple[int, int]:
    """The kernel lengths for rows and columns of a map of `shape` (h, w), no longer than mirrored padding allows."""
    wanted = kernel_length(sigma, kernel_size)
    return min(wanted, 2 * shape[0] - 1), min(wanted, 2 * shape[1] - 1)


def degrade(denoised: Tensor, received: Tensor, sigma: float, threshold: float, kernel_size: int) -> Tensor:
    """`denoised` (b, c, h, w), blurred in the cells in which `received` (b, h, w) exceeds `threshold` (equation 6)."""
    mask = rearrange(received > threshold, "b h w -> b 1 h w").to(denoised)
    sizes = kernel_sizes(sigma, kernel_size, (denoised.shape[-2], denoised.shape[-1]))
    return gaussian_blur(denoised, sigma, sizes) * mask + denoised * (1 - mask)


def enlarge(received: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (b, rows, columns), resized to `size` (h, w) by the nearest neighbour: (b, h, w)."""
    return rearrange(F.interpolate(rearrange(received, "b h w -> b 1 h w"), size), "b 1 h w -> b h w")
