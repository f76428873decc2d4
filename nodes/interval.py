"""Guidance in a limited interval (2404.07724)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..patches.interval import limit_cfg
from ..patches.span import Span
from .schema import model_input, model_output, percent_inputs, schema


class GuidanceInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_GuidanceInterval",
            display_name="Guidance Interval",
            category="reins/guidance",
            description="Uses CFG in a part of the run only. Outside, the negative is not even evaluated: faster, and "
            "with less of the burnt look that CFG gives at high noise.",
            search_aliases=["limited interval", "CFG limiter", "guidance interval", "skip uncond"],
            inputs=[model_input(), *percent_inputs()],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, start_percent: float, end_percent: float) -> io.NodeOutput:
        return io.NodeOutput(limit_cfg(model, Span(start_percent, end_percent)))
