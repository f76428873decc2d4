"""Asyrp (2210.10960): edits of the bottleneck h of a UNet, in the form of samplers that step the denoised picture.

Let x = x_vp / sqrt(alpha-bar) and sigma = sqrt((1 - alpha-bar) / alpha-bar). Then the paper's step (equations 5 to 7)
is an Euler step, or an ancestral one if it adds noise, plus the change that the edit makes in the denoised picture. A
flow model mixes picture and noise as (1 - sigma) x0 + sigma n, so there the change counts by the picture's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """An Euler step to the level `down`, its result times `kept`, plus noise of deviation `up`."""

    down: float
    up: float = 0.0
    kept: float = 1.0


def levels_of_step(sigma: float, following: float, eta: float, is_flow: bool) -> Levels:
    """The levels of a step from `sigma` to `following` that draws the share `eta` of the noise anew, as in the host."""
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
    """The next x (b, c, h, w), without new noise, from x and the denoised pictures `plain` and `edited` (b, c, h, w).

    The step predicts the edited picture, and its direction to the noise comes from the plain one.
    """
    euler = plain + (x - plain) * (levels.down / sigma)
    return levels.kept * (euler + _share(levels.down, is_flow) * (edited - plain))


def effective_factor(sigma: float, down: float, is_flow: bool) -> float:
    """The factor on the change of the denoised picture with which a plain Euler step equals the step of Asyrp."""
    return _share(down, is_flow) * sigma / (sigma - down)


def _share(down: float, is_flow: bool) -> float:
    return 1 - down if is_flow else 1.0


def following_level(sigma: float, sigmas: Sequence[float]) -> float | None:
    """The level that a sampler goes to from `sigma`, or None after its last level.

    For a sigma between two of the sampler's levels it is the lower one.
    """
    tolerance = 1e-4 * sigma
    for index, level in enumerate(sigmas[:-1]):
        if abs(level - sigma) <= tolerance:
            return next((later for later in sigmas[index + 1 :] if abs(later - sigma) > tolerance), None)
    return next((level for level in sigmas if level < sigma), None)


def scaled_to(direction: Tensor, h: Tensor) -> Tensor:
    """The direction (1 or b, c, h, w), scaled so that it is as long as each h (b, c, h, w): (b, c, h, w).

    A pooled direction (1 or b, c, 1, 1) is measured as if it were repeated over h and w, and stays pooled.
    """
    whole = direction.expand(-1, -1, *h.shape[-2:])
    lengths = [values.float().flatten(1).norm(dim=1) for values in (h, whole)]
    return direction * (lengths[0] / lengths[1].clamp(min=1e-12))[:, None, None, None].to(direction)


def at_sigma(directions: Tensor, sigmas: Sequence[float], sigma: float) -> Tensor:
    """The direction (c, h, w) at one sigma, from directions (t, c, h, w) at falling `sigmas`.

    Between two noise levels it is linear in log sigma. Beyond the ends it is the first or the last direction.
    """
    index = next((i for i, level in enumerate(sigmas) if level <= sigma), len(sigmas))
    if index == 0 or index == len(sigmas):
        return directions[min(index, len(sigmas) - 1)]
    high, low = sigmas[index - 1], sigmas[index]
    if low <= 0:
        return directions[index - 1]
    return torch.lerp(directions[index], directions[index - 1], log(sigma / low) / log(high / low))


def principal_direction(h: Tensor, number: int) -> Tensor:
    """One standard deviation (t, c, h, w) along principal component `number`, from 1, of h (samples, t, c, h, w).

    All t steps share one decomposition, so that their directions belong to the same change of the pictures. It is
    computed from the products of samples, because samples are few. The first sample lies on the positive side.
    """
    rows = (h - h.mean(0)).flatten(1).double()
    _, scores = torch.linalg.eigh(rows @ rows.T)  # rising
    score = scores[:, -number]
    score = score * torch.where(score[0] < 0, -1.0, 1.0)
    return ((score @ rows) / sqrt(len(rows) - 1)).reshape(h.shape[1:]).to(h.dtype)
