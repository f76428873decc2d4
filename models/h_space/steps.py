"""Asyrp (2210.10960): edits of the bottleneck h of a UNet, in the form of samplers that step the denoised picture.

With x = x_vp / sqrt(alpha-bar) and sigma = sqrt((1 - alpha-bar) / alpha-bar), the paper's step (equations 5 to 7) is
that of Euler, ancestral with its noise, plus what the edit changes in the denoised picture. A flow model mixes picture
and noise as (1 - sigma) x0 + sigma n, so there the change counts by the picture's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """A step of Euler down to `down`, all of it times `kept`, plus noise of deviation `up`."""

    down: float
    up: float = 0.0
    kept: float = 1.0


def levels_of_step(sigma: float, following: float, eta: float, is_flow: bool) -> Levels:
    """The step from one noise level to the next in which `eta` of the noise is drawn anew, as the host has it."""
    if eta == 0 or following == 0:
        return Levels(following)
    if is_flow:
        down = following * (1 + (following / sigma - 1) * eta)
        kept = (1 - following) / (1 - down)
        return Levels(down, sqrt(max(0.0, following**2 - (down * kept) ** 2)), kept)
    up = min(following, eta * following * sqrt(max(0.0, 1 - (following / sigma) ** 2)))
    return Levels(sqrt(following**2 - up**2), up)


def edited_step(
    x: Tensor, plain: Tensor, edited: Tensor, sigma: float, levels: Levels, is_flow: bool
) -> Tensor:  # fmt: skip
    """The next x (b, c, h, w) but for its new noise: the predicted picture is the edited one, the direction is not."""
    euler = plain + (x - plain) * (levels.down / sigma)
    return levels.kept * (euler + _share(levels.down, is_flow) * (edited - plain))


def effective_factor(sigma: float, down: float, is_flow: bool) -> float:
    """How often the change of the denoised picture has to be added so that a plain Euler step makes Asyrp's of it."""
    return _share(down, is_flow) * sigma / (sigma - down)


def _share(down: float, is_flow: bool) -> float:
    return 1 - down if is_flow else 1.0


def following_level(sigma: float, sigmas: Sequence[float]) -> float | None:
    """The level that a sampler goes to from `sigma`; between two of its levels the lower one; None after them all."""
    tolerance = 1e-4 * sigma
    for index, level in enumerate(sigmas[:-1]):
        if abs(level - sigma) <= tolerance:
            return next((later for later in sigmas[index + 1 :] if abs(later - sigma) > tolerance), None)
    return next((level for level in sigmas if level < sigma), None)


def scaled_to(direction: Tensor, h: Tensor) -> Tensor:
    """The direction (1 or b, c, h, w), pooled (1 or b, c, 1, 1), with the length of each h (b, c, h, w) once added."""
    whole = direction.expand(-1, -1, *h.shape[-2:])
    lengths = [values.float().flatten(1).norm(dim=1) for values in (h, whole)]
    return direction * (lengths[0] / lengths[1].clamp(min=1e-12))[:, None, None, None].to(direction)


def at_sigma(directions: Tensor, sigmas: Sequence[float], sigma: float) -> Tensor:
    """(c, h, w) out of (t, c, h, w) for falling noise levels, linear in log sigma; beyond the ends the last one."""
    place = next((i for i, level in enumerate(sigmas) if level <= sigma), len(sigmas))
    if place == 0 or place == len(sigmas):
        return directions[min(place, len(sigmas) - 1)]
    high, low = sigmas[place - 1], sigmas[place]
    if low <= 0:
        return directions[place - 1]
    return torch.lerp(directions[place], directions[place - 1], log(sigma / low) / log(high / low))


def principal_direction(h: Tensor, number: int) -> Tensor:
    """(t, c, h, w), one standard deviation along principal component `number` (from 1) of h (samples, t, c, h, w).

    One decomposition for all steps, so that the direction of each belongs to the same change of the pictures. It is
    made from the products of samples, which are few, and its sign is that in which the first sample lies.
    """
    rows = (h - h.mean(0)).flatten(1).double()
    _, scores = torch.linalg.eigh(rows @ rows.T)  # rising
    score = scores[:, -number]
    score = score * torch.where(score[0] < 0, -1.0, 1.0)
    return ((score @ rows) / sqrt(len(rows) - 1)).reshape(h.shape[1:]).to(h.dtype)
