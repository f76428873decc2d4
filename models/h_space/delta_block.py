"""Asyrp (2210.10960): the networks that give the change of a UNet's bottleneck, in both released layouts.

One layout belongs to the UNets of DDPM, the other to those of improved diffusion. They differ in the place of the norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32


class DDPMBlock(nn.Module):
    """conv2(silu(norm(conv1(h) + proj(silu(emb)))))"""

    def __init__(
        self, channels: int, time: int | None, operations: Any, device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.conv1 = operations.Conv2d(channels, channels, 1, **made)
        self.temb_proj = None if time is None else operations.Linear(time, channels, **made)
        self.norm2 = operations.GroupNorm(GROUPS, channels, eps=1e-6, **made)
        self.conv2 = operations.Conv2d(channels, channels, 1, **made)

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """The change (b, c, h, w) of h (b, c, h, w) at time embedding `emb` (b, time). None leaves the time out."""
        inner = self.conv1(h)
        if emb is not None and self.temb_proj is not None:
            inner = inner + self.temb_proj(functional.silu(emb))[:, :, None, None]
        return self.conv2(functional.silu(self.norm2(inner)))


class ImprovedBlock(nn.Module):
    """conv(silu(norm(conv(silu(norm(h))) + linear(silu(emb)))))"""

    def __init__(
        self, channels: int, time: int | None, operations: Any, device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, channels, **made), nn.SiLU(), operations.Conv2d(channels, channels, 1, **made)
        )
        self.emb_layers = None if time is None else nn.Sequential(nn.SiLU(), operations.Linear(time, channels, **made))
        self.out_layers = nn.Sequential(  # the third is a dropout where it is trained
            operations.GroupNorm(GROUPS, channels, **made), nn.SiLU(), nn.Identity(),
            operations.Conv2d(channels, channels, 1, **made),
        )  # fmt: skip

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """The change (b, c, h, w) of h (b, c, h, w) at time embedding `emb` (b, time). None leaves the time out."""
        inner = self.in_layers(h)
        if emb is not None and self.emb_layers is not None:
            inner = inner + self.emb_layers(emb)[:, :, None, None]
        return self.out_layers(inner)
