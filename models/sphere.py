"""The way along a great circle (Shoemake 1985), for embeddings of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

PARALLEL = 1e-3  # sine of an angle below which a great circle has no direction in single precision


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Shoemake 1985: directions of (..., c) turn, lengths go straight; 0 and 1 give the values of a and b.

    Directions without a great circle (parallel, opposite) go straight; a zero takes the other's direction.
    """
    if t in (0, 1):
        return (a if t == 0 else b).expand(torch.broadcast_shapes(a.shape, b.shape)).clone()
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    unit_a, unit_b = torch.where(length_a > 0, unit_a, unit_b), torch.where(length_b > 0, unit_b, unit_a)
    angle = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine.clamp_min(PARALLEL)
    direction = torch.where(sine > PARALLEL, turned, (1 - t) * unit_a + t * unit_b)
    return direction * ((1 - t) * length_a + t * length_b)
