"""Adaptive Projected Guidance (2410.02416)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..patches.adaptive_projection import adaptive_projection
from ..patches.cfg_correction import add_correction
from ..patches.span import Span
from .schema import make_input, model_input, model_output, percent_inputs, schema


class AdaptiveProjectedGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_AdaptiveProjectedGuidance",
            display_name="Adaptive Projected Guidance (APG)",
            category="reins/guidance",
            description="High CFG without burnt colours: takes out of the guidance what only makes the picture "
            "stronger, limits its length and slows its changes (APG, by the paper). Costs nothing.",
            search_aliases=["APG", "adaptive projected guidance", "CFG", "oversaturation"],
            inputs=[
                model_input(),
                make_input(
                    io.Float, "eta", default=0.0, min=-10.0, max=10.0, step=0.01,
                    tooltip="How much is left of the part of the guidance along the picture, which saturates. 1: all.",
                ),
                make_input(
                    io.Float, "norm_threshold", default=15.0, min=0.0, max=1000.0, step=0.1,
                    tooltip="The guidance of each picture is never longer than this. 0: any length.",
                ),
                make_input(
                    io.Float, "momentum", default=-0.5, min=-2.0, max=0.99, step=0.01,
                    tooltip="Share of the last step's guidance that is added; below 0 repeated directions lose weight. "
                    "0: none.",
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
