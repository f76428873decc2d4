"""Adaptive Projected Guidance (2410.02416)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID, uuid4

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.cfg_correction import GuidedStep, add_correction
from ...engine.run import Run
from ...engine.span import Span
from ...models.guidance.adaptive_projection import project_guidance
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema


class AdaptiveProjectedGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_AdaptiveProjectedGuidance",
            display_name="APG – Adaptive Projected Guidance",
            category="reins/guidance",
            description="High CFG without burnt colours: takes out of the guidance what only makes the picture "
            "stronger, limits its length and slows its changes (APG, by the paper). Costs nothing.",
            search_aliases=["APG", "adaptive projected guidance", "CFG", "oversaturation"],
            inputs=[
                model_input(),
                make_input(
                    io.Float, "eta", default=0.0, min=-10.0, max=10.0, step=0.01,
                    tooltip="How much is kept of the part of the guidance that points along the picture and saturates "
                    "it. 1: all.",
                ),
                make_input(
                    io.Float, "norm_threshold", default=15.0, min=0.0, max=1000.0, step=0.1,
                    tooltip="The guidance of each picture is never longer than this. 0: any length.",
                ),
                make_input(
                    io.Float, "momentum", default=-0.5, min=-2.0, max=0.99, step=0.01,
                    tooltip="Share of the last step's guidance that is added. Below 0, repeated directions lose "
                    "weight. 0: none.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, eta: float, norm_threshold: float, momentum: float, start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:  # fmt: skip
        if eta == 1 and norm_threshold == 0 and momentum == 0:
            return io.NodeOutput(model)
        correct = adaptive_projection(eta, norm_threshold, momentum)
        return io.NodeOutput(add_correction(model, "APG", Span(start_percent, end_percent), correct))


class StepGuidance(NamedTuple):
    """The guidance (b, c, h, w) that a step leaves for the next one. `is_first` if its call was at the step's start."""

    guidance: Tensor
    is_first: bool


@dataclass(frozen=True, eq=False)
class Momentum:
    """Adds to the guidance (b, c, h, w) `weight` times that of the step before, with the momentum in it.

    Steps of the sampler count, not calls of the model: further calls within a step, as of samplers of higher
    order, also start from the step before.
    """

    weight: float
    id: UUID = field(default_factory=uuid4)

    def __call__(self, guidance: Tensor, sigma: float, run: Run) -> Tensor:
        if not self.weight:
            return guidance
        kept: dict[int, StepGuidance] = run.once(self.id, dict)
        position = run.position(sigma)
        before = kept.get(position - 1)
        if before is not None and before.guidance.shape == guidance.shape:  # a sampler may enlarge the latent
            guidance = guidance + self.weight * before.guidance
        is_first = sigma in run.sigmas
        if is_first or position not in kept or not kept[position].is_first:
            kept[position] = StepGuidance(guidance, is_first)
        for older in [number for number in kept if number < position - 1]:
            del kept[older]
        return guidance


def adaptive_projection(eta: float, norm_threshold: float, momentum: float) -> Callable[[GuidedStep], Tensor]:
    """Returns what the method adds to CFG: c + (cfg - 1) * projected guidance instead of c + (cfg - 1) * (c - u)."""
    with_momentum = Momentum(momentum)

    def correct(step: GuidedStep) -> Tensor:
        plain = step.positive - step.negative
        guidance = with_momentum(plain, step.sigma, step.run)
        return (step.cfg - 1) * (project_guidance(guidance, step.positive, eta, norm_threshold) - plain)

    return correct
