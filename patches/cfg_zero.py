"""CFG-Zero* (2503.18886)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..models.cfg_zero import optimal_scale
from .cfg_correction import GuidedStep


def cfg_zero(zero_init_steps: int) -> Callable[[GuidedStep], Tensor]:
    """What the method adds to CFG, in the velocity x - x0 of the sampler's own equation, up to a factor per step.

    s v_u + cfg (v_c - s v_u) in the place of v_u + cfg (v_c - v_u); and no velocity at all in the first steps.
    """

    def correct(step: GuidedStep) -> Tensor:
        v_c, v_u = step.x - step.positive, step.x - step.negative
        if step.run.position(step.sigma) < zero_init_steps:
            return v_u + step.cfg * (v_c - v_u)
        return (step.cfg - 1) * (optimal_scale(v_c, v_u) - 1) * v_u

    return correct
