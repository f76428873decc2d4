"""The pooling head of a SigLIP image encoder (2303.15343), which ComfyUI's encoder leaves out.

Parameters are named as in the encoder's file behind its prefix, but for the fused matrix of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

PREFIX = "vision_model.head."
FUSED = {"attention.in_proj_weight": "attention.in_proj.weight", "attention.in_proj_bias": "attention.in_proj.bias"}
HEADS = 16  # of SigLIP so400m. A file does not tell.
EPS = 1e-6


class PoolingHead(nn.Module):
    """One vector (b, c) of a picture's hidden states (b, n, c) behind the last norm, by attention of one query."""

    def __init__(self, width: int, inner: int, operations: ModuleType, **factory: Any) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.attention = nn.Module()
        self.attention.in_proj = operations.Linear(width, 3 * width, **factory)
        self.attention.out_proj = operations.Linear(width, width, **factory)
        self.layernorm = operations.LayerNorm(width, eps=EPS, **factory)
        self.mlp = nn.Module()
        self.mlp.fc1 = operations.Linear(width, inner, **factory)
        self.mlp.fc2 = operations.Linear(inner, width, **factory)

    def forward(self, hidden: Tensor) -> Tensor:
        seen = torch.cat([self.probe.to(hidden).expand(len(hidden), -1, -1), hidden], 1)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=HEADS) for part in self.attention.in_proj(seen).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q[:, :, :1], k[:, :, 1:], v[:, :, 1:])
        pooled = self.attention.out_proj(rearrange(mixed, "b h n d -> b n (h d)"))
        inner = functional.gelu(self.mlp.fc1(self.layernorm(pooled)), approximate="tanh")
        return (pooled + self.mlp.fc2(inner))[:, 0]


def take_out_head(weights: Mapping[str, Tensor], name: str) -> tuple[Callable[..., nn.Module], dict[str, Tensor]]:
    """What makes the head in an encoder's file called `name`, and its tensors.

    Raises ValueError if the file has no such head.
    """
    found = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    head = {FUSED.get(key, key): value for key, value in found.items()}
    probe, inner = head.get("probe"), head.get("mlp.fc1.weight")
    if probe is None or inner is None or probe.ndim != 3 or inner.ndim != 2 or probe.shape[-1] % HEADS:
        raise ValueError(
            f"{name} should hold a SigLIP image encoder with its pooling head ({PREFIX}*), but has no such head. "
            f"Choose sigclip_vision_patch14_384.safetensors or the encoder's original file."
        )
    return partial(PoolingHead, probe.shape[-1], inner.shape[0]), head
