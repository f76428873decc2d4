"""Guidance in a limited interval (2404.07724)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.entries import append, next_order
from ...engine.guidance import Args, install_guidance
from ...engine.scope import put_first
from ...engine.span import Span
from ...engine.step import CFGSpan, in_span
from ..inputs.schema import model_input, model_output, percent_inputs, schema


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


def limit_cfg(model: ModelPatcher, span: Span) -> ModelPatcher:
    """Returns a clone of `model` that uses the negative inside `span` only, and does not evaluate it elsewhere."""

    def positive_outside(args: Args) -> Tensor:
        """Corrects the result of guiders that skip the slot, and of CFG functions that do not return c for u = c."""
        if in_span(span, args) or args["cond"] is None:
            return args["denoised"]
        return args["cond_denoised"]

    model = model.clone()
    append(model, CFGSpan(order=next_order(model), span=span))
    install_guidance(model)
    # It runs first, so that what earlier nodes add to the result is kept.
    put_first(model, positive_outside)
    return model
