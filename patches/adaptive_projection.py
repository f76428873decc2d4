"""Adaptive Projected Guidance (2410.02416)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID, uuid4

from torch import Tensor

from ..models.adaptive_projection import projected
from .cfg_correction import GuidedStep
from .run import Run


class Kept(NamedTuple):
    """The guidance that a step leaves for the next one; `is_first` if it was found where the step begins."""

    guidance: Tensor
    is_first: bool


@dataclass(frozen=True, eq=False)
class Momentum:
    """The guidance with `weight` times that of the step before, which has its own momentum in it.

    Steps of the sampler count, not calls of the model: what a sampler asks between the ends of a step, or asks again
    with another picture, starts from the step before as the first call does.
    """

    weight: float
    id: UUID = field(default_factory=uuid4)

    def __call__(self, guidance: Tensor, sigma: float, run: Run) -> Tensor:
        if not self.weight:
            return guidance
        kept: dict[int, Kept] = run.once(self.id, dict)
        position = run.position(sigma)
        before = kept.get(position - 1)
        if before is not None:
            guidance = guidance + self.weight * before.guidance
        is_first = sigma in run.sigmas
        if is_first or position not in kept or not kept[position].is_first:
            kept[position] = Kept(guidance, is_first)
        for older in [number for number in kept if number < position - 1]:
            del kept[older]
        return guidance


def adaptive_projection(eta: float, norm_threshold: float, momentum: float) -> Callable[[GuidedStep], Tensor]:
    """What the method adds to CFG: c + (cfg - 1) * projected guidance in the place of c + (cfg - 1) * (c - u)."""
    with_momentum = Momentum(momentum)

    def correct(step: GuidedStep) -> Tensor:
        plain = step.positive - step.negative
        guidance = with_momentum(plain, step.sigma, step.run)
        return (step.cfg - 1) * (projected(guidance, step.positive, eta, norm_threshold) - plain)

    return correct
