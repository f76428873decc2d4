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
NEAR_END = 1e-9  # at 0 and 1 themselves the host gives values outside of the model's table, such as 999999999.9


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
    return percent_of(sigma, sigma_table(run, to_sigma))


def sigma_table(run: Run, to_sigma: ToSigma) -> tuple[float, ...]:
    """Returns the sigmas at evenly spaced percents, for `percent_of`. They are computed once in a run."""
    return run.once(sigma_table, lambda: sigmas_at_even_percents(to_sigma, TABLE_STEPS))


def sigmas_at_even_percents(to_sigma: ToSigma, steps: int) -> tuple[float, ...]:
    """Returns the sigmas at `steps` + 1 percents from 0 to 1."""
    percents = [NEAR_END, *(i / steps for i in range(1, steps)), 1 - NEAR_END]
    return tuple(float(to_sigma(percent)) for percent in percents)
