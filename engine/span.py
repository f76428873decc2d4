"""The part of the sampling run in which a method acts.

A node gives it in percents. In the run they become noise levels, by the schedule of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import torch

from ..models.guidance.fade import percent_of
from .run import Run

ToSigma = Callable[[float], float]
TABLE_STEPS = 500


class Span(NamedTuple):
    """A range of percents of the run. Its ends belong to it."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def contains(self, sigma: float, run: Run, to_sigma: ToSigma) -> bool:
        """Whether a step lies in the range, by the schedule of the model that is being sampled.

        The sigmas of the ends are computed in the run, for a later node may change the model's schedule.
        """
        high, low = run.once((Span, self), lambda: self._sigmas(to_sigma))
        return low <= sigma <= high

    def _sigmas(self, to_sigma: ToSigma) -> tuple[float, float]:
        high = _single(to_sigma(self.start_percent)) if self.start_percent > 0 else inf
        return high, _single(to_sigma(self.end_percent))


def _single(sigma: float) -> float:
    """Returns sigma rounded as the sampler's own are, so that a step exactly on the end of a range is inside."""
    return torch.tensor(sigma, dtype=torch.float32).item()


WHOLE_RUN = Span()


def percent_at(sigma: float, run: Run, to_sigma: ToSigma) -> float:
    """Returns the percent of the run at `sigma`, by the model's own schedule."""
    table = run.once(percent_at, lambda: [float(to_sigma(i / TABLE_STEPS)) for i in range(TABLE_STEPS + 1)])
    return percent_of(sigma, table)
