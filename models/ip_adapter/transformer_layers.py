"""IP-Adapters for diffusion transformers: from image tokens to k and v, and the attention of the picture to them.

Parameters are named as in the official files, XLabs' after its prefixes are gone. Queries, keys and values are
(b, heads, tokens, d).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .time_resampler import TimedTokens

SD3_EPS = 1e-6
INSTANTX_EPS = 1e-5


class Scale(nn.Module):
    """A weight (d,) of a norm by the root mean square. The host's layers have none such in all its versions."""

    def __init__(self, d: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d, **factory))


class SD3Layer(nn.Module):
    """One attention of Stable Diffusion 3.5 in InstantX's file."""

    def __init__(self, hidden: int, context: int, time: int, d: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.norm_ip = nn.Module()
        self.norm_ip.linear = operations.Linear(time, 2 * context, **factory)
        self.to_k_ip = operations.Linear(context, hidden, bias=False, **factory)
        self.to_v_ip = operations.Linear(context, hidden, bias=False, **factory)
        self.norm_q, self.norm_k, self.norm_ip_k = (Scale(d, **factory) for _ in range(3))

    def keys_and_values(self, tokens: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """k and v (b, heads, tokens, d) of image tokens (b, tokens, context) at a time (1, dim)."""
        shift, scale = self.norm_ip.linear(functional.silu(time))[:, None].chunk(2, -1)
        tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=SD3_EPS) * (1 + scale) + shift
        d = len(self.norm_q.weight)
        k, v = (rearrange(part(tokens), "b n (h d) -> b h n d", d=d) for part in (self.to_k_ip, self.to_v_ip))
        return rms_norm(k, SD3_EPS) * self.norm_ip_k.weight.to(k), v


class SD3Layers(nn.Module):
    """The attentions of Stable Diffusion 3.5 in the order in which it runs."""

    def __init__(
        self, count: int, hidden: int, context: int, time: int, d: int, operations: ModuleType, **factory: Any
    ) -> None:
        super().__init__()
        for n in range(count):
            self.add_module(str(n), SD3Layer(hidden, context, time, d, operations, **factory))

    def keys_and_values(self, n: int, timed: TimedTokens) -> tuple[Tensor, Tensor]:
        """k and v (b, heads, tokens, d) in the n-th attention."""
        return self.get_submodule(str(n)).keys_and_values(*timed)

    def norms(self, n: int) -> tuple[Tensor, Tensor]:
        """The weights (d,) of the norms of the picture's queries and keys in the n-th attention."""
        layer = self.get_submodule(str(n))
        return layer.norm_q.weight, layer.norm_k.weight


class FluxLayers(nn.Module):
    """The attentions of Flux, which read the tokens as they are.

    XLabs' have biases. InstantX's are normed by the root mean square, v too, without weights.
    """

    def __init__(
        self, count: int, hidden: int, context: int, operations: ModuleType, is_normed: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.is_normed = is_normed
        for n in range(count):
            pair = nn.Module()
            pair.to_k_ip = operations.Linear(context, hidden, bias=not is_normed, **factory)
            pair.to_v_ip = operations.Linear(context, hidden, bias=not is_normed, **factory)
            self.add_module(str(n), pair)

    def keys_and_values(self, n: int, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """k and v (b, heads, tokens, d) in the n-th attention, from image tokens (b, tokens, context)."""
        pair = self.get_submodule(str(n))
        k, v = (rearrange(part(tokens), "b n (h d) -> b h n d", h=heads) for part in (pair.to_k_ip, pair.to_v_ip))
        return (rms_norm(k, INSTANTX_EPS), rms_norm(v, INSTANTX_EPS)) if self.is_normed else (k, v)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x (..., d), divided by the root of its mean square."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x)


def normed_again(x: Tensor, was: Tensor | None, weight: Tensor) -> Tensor:
    """Queries or keys (..., d), normed with another `weight` (d,).

    `was` is the weight (d,) of the norm that they have been through. None: they have been through no norm.
    """
    if was is None:
        return rms_norm(x, SD3_EPS) * weight.to(x)
    factor = torch.where(was == 0, 0, weight.to(was.device, torch.float32) / was.float())
    return (x * factor).to(x)


def without_positions(q: Tensor, positions: Tensor) -> Tensor:
    """Queries (b, heads, tokens, d) before rotary positions (1 or b, 1, tokens, d / 2, 2, 2) turned them.

    A rotation is undone by its transposed matrix.
    """
    pairs = q.to(positions.dtype).unflatten(-1, (-1, 2))
    # The same by einsum is a product of millions of tiny matrices.
    return (pairs[..., :1] * positions[..., 0, :] + pairs[..., 1:] * positions[..., 1, :]).flatten(-2).to(q)
