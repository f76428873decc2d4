"""IP-Adapter for Stable Diffusion 3.5 (InstantX): image tokens from hidden states and the time of the sampler.

Parameters are named as in the official file.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .network import DEPTH, PerceiverAttention, feed_forward

TIME_WIDTH = 320  # of the sines of the time in the released file
STEPS = 1000  # the time of a noise level of 1, as the file was trained


class TimedTokens(NamedTuple):
    """Image tokens (b, tokens, context) at a time, and the embedding (1, dim) of the time, which the layers read."""

    tokens: Tensor
    time: Tensor


class TimeEmbedding(nn.Module):
    """An embedding (b, dim) of times (b,)."""

    def __init__(self, sines: int, dim: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.half = sines // 2
        self.linear_1 = operations.Linear(sines, dim, **factory)
        self.linear_2 = operations.Linear(dim, dim, **factory)

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        place = torch.arange(self.half, device=time.device) / self.half
        angle = time.float()[:, None] * torch.exp(-math.log(10000) * place)
        sines = torch.cat([angle.cos(), angle.sin()], -1).to(dtype)
        return self.linear_2(nn.functional.silu(self.linear_1(sines)))


class TimeResampler(nn.Module):
    """Image tokens from hidden states (b, n, width), by latents that are scaled and shifted by the time."""

    def __init__(
        self, width: int, tokens: int, dim: int, inner: int, context: int, operations: ModuleType, depth: int = DEPTH,
        sines: int = TIME_WIDTH, **factory: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, tokens, dim, **factory))
        self.proj_in = operations.Linear(width, dim, **factory)
        self.proj_out = operations.Linear(dim, context, **factory)
        self.norm_out = operations.LayerNorm(context, **factory)
        self.time_embedding = TimeEmbedding(sines, dim, operations, **factory)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, inner, operations, **factory),
                    feed_forward(dim, operations, **factory),
                    nn.Sequential(nn.SiLU(), operations.Linear(dim, 4 * dim, **factory)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, hidden: Tensor, time: Tensor) -> TimedTokens:
        """The tokens of hidden states (b, n, width) at a time (1 or b,) between 0 and STEPS."""
        time = self.time_embedding(time, hidden.dtype)
        x = self.proj_in(hidden) + time[:, None]
        latents = self.latents.to(hidden).expand(len(hidden), -1, -1)
        for attention, (norm, *parts), adapt in self.layers:
            shift, scale, late_shift, late_scale = adapt(time)[:, None].chunk(4, -1)
            latents = latents + attention(x, latents, 1 + scale, shift)
            changed = norm(latents) * (1 + late_scale) + late_shift
            for part in parts:
                changed = part(changed)
            latents = latents + changed
        return TimedTokens(self.norm_out(self.proj_out(latents)), time)
