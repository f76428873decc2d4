"""Frequency-Decoupled Guidance (2506.19713)."""

from __future__ import annotations

from collections.abc import Callable

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.cfg_correction import GuidedStep, add_correction
from ...engine.latents import check_before_sampling, check_format, check_shape
from ...engine.span import Span
from ...models.guidance.frequency_bands import weight_bands
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema

NAME = "Frequency-Decoupled Guidance"


class FrequencyDecoupledGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_FrequencyDecoupledGuidance",
            display_name="FDG – Frequency-Decoupled Guidance",
            category="reins/guidance",
            description="Guides fine detail more strongly than colours and layout: sharp pictures at a low CFG, "
            "without burnt colours (FDG). Costs nothing.",
            search_aliases=["FDG", "frequency-decoupled guidance", "CFG", "detail", "laplacian pyramid"],
            inputs=[
                model_input(),
                _factor_input("scale_low", 1.0, "the lowest frequencies: colours, brightness, layout"),
                _factor_input("scale_high", 2.0, "the highest frequencies: edges and fine detail"),
                make_input(
                    io.Int, "levels", default=2, min=2, max=8,
                    tooltip="How many bands there are; those between low and high have factors between them.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale_low: float, scale_high: float, levels: int, start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:  # fmt: skip
        if scale_low == 1 and scale_high == 1:
            return io.NodeOutput(model)
        check_format(model, NAME)
        correct = frequency_decoupled(scale_low, scale_high, levels)
        model = add_correction(model, "FDG", Span(start_percent, end_percent), correct)
        check_before_sampling(model, NAME, videos=True)
        return io.NodeOutput(model)


def frequency_decoupled(low: float, high: float, levels: int) -> Callable[[GuidedStep], Tensor]:
    """Returns what the method adds to CFG: u + sum of factor * cfg * band(c - u) instead of u + cfg * (c - u)."""

    def correct(step: GuidedStep) -> Tensor:
        check_shape(step.x.shape, NAME, videos=True)
        return step.cfg * weight_bands(step.positive - step.negative, low - 1, high - 1, levels)

    return correct


def _factor_input(name: str, default: float, what: str) -> io.Input:
    return make_input(
        io.Float, name, default=default, min=0.0, max=100.0, step=0.01,
        tooltip=f"Factor on the CFG for {what}. 1: as CFG does it.",
    )  # fmt: skip
