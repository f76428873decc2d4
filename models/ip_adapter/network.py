"""IP-Adapter (2308.06721): the networks from an image encoder's output to image tokens, and from tokens to k and v.

Parameters are named as in the official files. Every class takes the host's `operations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64  # numbers per head in every released resampler
DEPTH = 4


class LinearProjection(nn.Module):
    """Image tokens (b, tokens, context) from image_embeds (b, width)."""

    def __init__(self, width: int, tokens: int, context: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.context = context
        self.proj = operations.Linear(width, tokens * context, **factory)
        self.norm = operations.LayerNorm(context, **factory)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(embeds), "b (tokens context) -> b tokens context", context=self.context))


class FullProjection(nn.Module):
    """Image tokens (b, n, context), one for each of the penultimate hidden states (b, n, width)."""

    def __init__(self, width: int, inner: int, context: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            operations.Linear(width, inner, **factory), nn.GELU(),
            operations.Linear(inner, context, **factory), operations.LayerNorm(context, **factory),
        )  # fmt: skip

    def forward(self, hidden: Tensor) -> Tensor:
        return self.proj(hidden)


class FaceProjection(nn.Module):
    """Image tokens (b, tokens, context) from the identity (b, width) of a face."""

    def __init__(
        self, width: int, inner: int, tokens: int, context: int, operations: ModuleType, **factory: Any
    ) -> None:
        super().__init__()
        self.context = context
        self.proj = nn.Sequential(
            operations.Linear(width, inner, **factory), nn.GELU(),
            operations.Linear(inner, tokens * context, **factory),
        )  # fmt: skip
        self.norm = operations.LayerNorm(context, **factory)

    def forward(self, identity: Tensor) -> Tensor:
        tokens = rearrange(self.proj(identity), "b (tokens context) -> b tokens context", context=self.context)
        return self.norm(tokens)


class PerceiverAttention(nn.Module):
    """Attention of latents (b, l, dim) to a picture (b, n, dim) and to themselves: (b, l, dim).

    Normed latents may be scaled and shifted, by tensors (1 or b, 1, dim).
    """

    def __init__(self, dim: int, inner: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.heads = inner // HEAD
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.to_q = operations.Linear(dim, inner, bias=False, **factory)
        self.to_kv = operations.Linear(dim, 2 * inner, bias=False, **factory)
        self.to_out = operations.Linear(inner, dim, bias=False, **factory)

    def forward(self, x: Tensor, latents: Tensor, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents) * scale + shift
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (self.to_q(latents), k, v))
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


def feed_forward(dim: int, operations: ModuleType, **factory: Any) -> nn.Sequential:
    """The layer of latents (b, l, dim) that follows their attention, with its norm first."""
    return nn.Sequential(
        operations.LayerNorm(dim, **factory),
        operations.Linear(dim, 4 * dim, bias=False, **factory),
        nn.GELU(),
        operations.Linear(4 * dim, dim, bias=False, **factory),
    )


class Perceiver(nn.Module):
    """Attentions that gather tokens (b, l, context) from the hidden states (b, n, width) of a picture."""

    def __init__(
        self, width: int, dim: int, inner: int, context: int, operations: ModuleType, depth: int = DEPTH, **factory: Any
    ) -> None:
        super().__init__()
        self.proj_in = operations.Linear(width, dim, **factory)
        self.proj_out = operations.Linear(dim, context, **factory)
        self.norm_out = operations.LayerNorm(context, **factory)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, inner, operations, **factory),
                    feed_forward(dim, operations, **factory),
                ]
            )
            for _ in range(depth)
        )

    def gather(self, latents: Tensor, hidden: Tensor) -> Tensor:
        """The tokens (b, l, context) for latents (b, l, dim), from hidden states (b, n, width)."""
        x = self.proj_in(hidden)
        for attention, change in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + change(latents)
        return self.norm_out(self.proj_out(latents))


class Resampler(Perceiver):
    """Image tokens (b, tokens, context) from hidden states (b, n, width), by latents that were learnt."""

    def __init__(
        self, width: int, tokens: int, dim: int, inner: int, context: int, operations: ModuleType, depth: int = DEPTH,
        **factory: Any,
    ) -> None:  # fmt: skip
        super().__init__(width, dim, inner, context, operations, depth, **factory)
        self.latents = nn.Parameter(torch.empty(1, tokens, dim, **factory))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.gather(self.latents.to(hidden).expand(len(hidden), -1, -1), hidden)


class FacePlusProjection(FaceProjection):
    """Image tokens from a face's identity (b, width) and the hidden states (b, n, clip_width) of its picture."""

    def __init__(
        self, width: int, inner: int, tokens: int, context: int, operations: ModuleType, *, clip_width: int,
        perceiver_inner: int, depth: int = DEPTH, **factory: Any,
    ) -> None:  # fmt: skip
        super().__init__(width, inner, tokens, context, operations, **factory)
        self.perceiver_resampler = Perceiver(
            clip_width, context, perceiver_inner, context, operations, depth, **factory
        )

    def forward(self, identity: Tensor, hidden: Tensor, shortcut: float | None = None) -> Tensor:
        """Image tokens (b, tokens, context) from identity (b, width) and hidden states (b, n, clip_width).

        `shortcut` is the strength of the picture beside the identity (v2). None leaves the picture alone (v1).
        """
        tokens = super().forward(identity)
        gathered = self.perceiver_resampler.gather(tokens, hidden)
        return gathered if shortcut is None else tokens + shortcut * gathered


class ImageLayers(nn.Module):
    """k and v of image tokens for every text attention, in the order of the file: down, up, then the middle."""

    def __init__(
        self, sizes: Sequence[tuple[int, int]], operations: ModuleType, **factory: Any
    ) -> None:  # (hidden, context) of each
        super().__init__()
        for n, (hidden, context) in enumerate(sizes):
            pair = nn.Module()
            pair.to_k_ip = operations.Linear(context, hidden, bias=False, **factory)
            pair.to_v_ip = operations.Linear(context, hidden, bias=False, **factory)
            self.add_module(str(2 * n + 1), pair)  # even numbers are the self-attentions

    def keys_and_values(self, n: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of the n-th text attention, each (b, tokens, hidden), from image tokens (b, tokens, context)."""
        pair = self.get_submodule(str(2 * n + 1))
        return pair.to_k_ip(tokens), pair.to_v_ip(tokens)
