"""Asyrp (2210.10960, section 4.2): the rule by which t_edit and t_boost are found on pictures of a model's own kind.

A picture is inverted by DDIM: the noise goes up by steps that draw none. At each level LPIPS compares the picture with
what the model predicts (P_t) and with the noisy picture itself (x_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from torch import Tensor


def inverted_step(x: Tensor, denoised: Tensor, sigma: float, following: float) -> Tensor:
    """The x (b, c, h, w) at the level `following` above sigma, from x and what is predicted there (b, c, h, w).

    It is an Euler step upwards, the same for flow models.
    """
    return denoised + (x - denoised) * (following / sigma)


def share_of_picture(sigma: float, sigma_data: float, is_flow: bool) -> float:
    """The factor that gives a noisy x the size of a picture, as the paper's x_t has it. For flow models it has it."""
    return 1.0 if is_flow else sigma_data / sqrt(sigma**2 + sigma_data**2)


def crossing(percents: Sequence[float], distances: Sequence[float], threshold: float) -> float | None:
    """The first percent, from the finished picture to the noise, at which a distance is as large as the threshold.

    Between two levels it is linear. None if no distance is as large.
    """
    for i, distance in enumerate(distances):
        if distance < threshold:
            continue
        if i == 0:
            return percents[0]
        below = distances[i - 1]
        return percents[i - 1] + (percents[i] - percents[i - 1]) * (threshold - below) / (distance - below)
    return None
