"""Frequency-Decoupled Guidance (2506.19713)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..models.frequency_bands import weighed
from .cfg_correction import GuidedStep


def frequency_decoupled(low: float, high: float, levels: int) -> Callable[[GuidedStep], Tensor]:
    """What the method adds to CFG: u + sum of factor * cfg * band(c - u) in the place of u + cfg * (c - u)."""

    def correct(step: GuidedStep) -> Tensor:
        return step.cfg * weighed(step.positive - step.negative, low - 1, high - 1, levels)

    return correct
