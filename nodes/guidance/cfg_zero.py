"""CFG-Zero* (2503.18886)."""

from __future__ import annotations

from collections.abc import Callable

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.cfg_correction import GuidedStep, add_correction
from ...engine.span import Span
from ...models.guidance.cfg_zero import optimal_scale
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema


class CFGZeroStar(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_CFGZeroStar",
            display_name="CFG-Zero*",
            category="reins/guidance",
            description="Corrects the size of the negative's velocity before CFG pushes away from it, and may hold "
            "the first steps still (CFG-Zero*, in the paper's velocity form). Costs nothing.",
            search_aliases=["CFG-Zero*", "CFG zero star", "optimized scale", "zero init", "flow matching"],
            inputs=[
                model_input(),
                make_input(
                    io.Int, "zero_init_steps", default=0, min=0, max=100,
                    tooltip="How many of the sampler's first steps hold still. What other nodes add still moves them. "
                    "1 for flow models, 0 for all others. A second pass and image to image have no such steps.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, zero_init_steps: int, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        span = Span(start_percent, end_percent)
        return io.NodeOutput(add_correction(model, "CFG-Zero*", span, cfg_zero(zero_init_steps)))


def cfg_zero(zero_init_steps: int) -> Callable[[GuidedStep], Tensor]:
    """Returns what the method adds to CFG, as a velocity x - x0 of the sampler's own equation.

    s v_u + cfg (v_c - s v_u) instead of v_u + cfg (v_c - v_u), and no velocity at all in the first steps from
    noise. A second pass does not start from noise. If the sampler's x is not the flow's, the velocity is the flow's.
    """

    def correct(step: GuidedStep) -> Tensor:
        still = step.without_velocity
        v_c, v_u = still - step.positive, still - step.negative
        if step.run.position(step.sigma) < zero_init_steps and step.is_from_noise:
            return v_u + step.cfg * (v_c - v_u)
        return (step.cfg - 1) * (optimal_scale(v_c, v_u) - 1) * v_u

    return correct
