"""How a guidance scale fades over the sampling range: a factor for each `percent` of the run (0 start, 1 end)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

Fade = Callable[[float, float, float], float]  # (percent, start_percent, end_percent) -> factor


def linear(percent: float, start: float, end: float) -> float:
    """The factor that falls from 1 at the start of the range to 0 at its end."""
    return 1.0 if end <= start else min(1.0, max(0.0, (end - percent) / (end - start)))


def adaptive(strength: float) -> Fade:
    """The fade of sd-perturbed-attention: 1 - strength^4 * (1000 - timestep), with timesteps from 999 to 0."""
    return lambda percent, start, end: max(0.0, 1.0 - strength**4 * (1 + 999 * percent))


def percent_of(sigma: float, table: Sequence[float]) -> float:
    """The percent of a sigma, the inverse of the host's percent_to_sigma.

    `table` holds the falling sigmas of evenly spaced percents. Between two of them the percent is linear.
    """
    last = len(table) - 1
    above = bisect_left([-value for value in table], -sigma)  # first entry not larger than sigma
    if above == 0:
        return 0.0
    if above > last:
        return 1.0
    high, low = table[above - 1], table[above]
    return (above - 1 + (high - sigma) / (high - low)) / last
