"""Self-Attention Guidance (2210.00939): where the model looks, and the picture blurred there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .blur import gaussian_blur


def attention_received(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """How much each key is attended, (b, keys), where 1 is the average (section 4.2: heads averaged, queries summed).

    q (b, queries, heads * d), k (b, keys, heads * d). Another patch may have merged queries, hence the ratio.
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
    """Odd length of a blur kernel in cells: the wanted size or, for 0, 6 sigma + 1; 1 is no blur."""
    return (kernel_size or int(6 * sigma + 1)) | 1


def kernel_sizes(sigma: float, kernel_size: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Kernel lengths for the rows and columns of a map of `shape` (h, w), capped by mirrored padding."""
    wanted = kernel_length(sigma, kernel_size)
    return min(wanted, 2 * shape[0] - 1), min(wanted, 2 * shape[1] - 1)


def degrade(denoised: Tensor, received: Tensor, sigma: float, threshold: float, kernel_size: int) -> Tensor:
    """Blur `denoised` (b, c, h, w) where `received` (b, h, w) exceeds `threshold` (equation 6)."""
    mask = rearrange(received > threshold, "b h w -> b 1 h w").to(denoised)
    sizes = kernel_sizes(sigma, kernel_size, (denoised.shape[-2], denoised.shape[-1]))
    return gaussian_blur(denoised, sigma, sizes) * mask + denoised * (1 - mask)


def enlarge(received: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of a map (b, h, w) to `size` (h, w)."""
    return rearrange(F.interpolate(rearrange(received, "b h w -> b 1 h w"), size), "b 1 h w -> b h w")
