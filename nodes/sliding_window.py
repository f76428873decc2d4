"""Sliding Window Guidance (2411.10257)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..patches.guidance import CELL
from ..patches.sliding_window import WindowTerm, add_window_term
from ..patches.span import Span
from .schema import make_input, model_input, model_output, percent_inputs, scale_input, schema


class SlidingWindowGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SlidingWindowGuidance",
            display_name="Sliding Window Guidance (SWG)",
            category="reins/guidance",
            description="Holds large pictures together: steers away from predictions that see only a window of the "
            "picture at a time (SWG). Evaluates the windows, once more in all where they do not overlap.",
            search_aliases=["SWG", "sliding window guidance", "global coherence", "high resolution"],
            inputs=[
                model_input(), scale_input(2.0),
                make_input(
                    io.Int, "tile", default=512, min=16, max=16384, step=8,
                    tooltip="Side of a window in pixels. A picture that is no larger gets no guidance.",
                ),
                make_input(
                    io.Int, "overlap", default=128, min=0, max=16384, step=8,
                    tooltip="By how many pixels neighbouring windows overlap; the last one ends with the picture.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, tile: int, overlap: int, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        if overlap >= tile or tile < CELL:
            raise ValueError(
                f"tile should be longer than overlap, but tile is {tile} and overlap is {overlap} pixels. Windows "
                f"would not move on: lower overlap, to a quarter of tile for example."
            )
        cells, shared = max(tile // CELL, 1), overlap // CELL
        term = WindowTerm(
            name="SWG", scale=scale, span=Span(start_percent, end_percent), tile=cells, overlap=min(shared, cells - 1)
        )
        return io.NodeOutput(add_window_term(model, term) if scale else model)
