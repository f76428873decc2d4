"""Slerp (Shoemake 1985): the way along a great circle, for embeddings of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

PARALLEL = 1e-3  # if the sine of an angle is smaller, its great circle has no direction in single precision


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The vectors (..., c) at share `t` of the way from a (..., c) to b (..., c). At 0 and 1 they are a and b.

    Directions follow the great circle, and lengths are linear. Parallel and opposite directions have no great circle
    and are linear too. A zero takes the direction of the other vector.
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
