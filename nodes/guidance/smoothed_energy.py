"""Smoothed Energy Guidance (2408.00760)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.dit.call import DiTCall
from ...engine.find import all_sites
from ...engine.guidance import AttentionTerm, add_term
from ...engine.layers.attention import Attend, Call, Layer, with_queries
from ...engine.span import Span
from ...models.guidance.smoothed_energy import blur_queries
from ..inputs.auto_layers import chosen_sites
from ..inputs.fade import fade_input, make_fade
from ..inputs.schema import (
    layers_input,
    make_input,
    model_input,
    model_output,
    percent_inputs,
    refresh_input,
    scale_input,
    schema,
    share_input,
)


class SmoothedEnergyGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SmoothedEnergyGuidance",
            display_name="SEG – Smoothed Energy Guidance",
            category="reins/guidance",
            description="A gentler relative of PAG: steers away from a prediction whose attention queries are blurred "
            "(SEG). Fewer side effects at high scales; one more evaluation per step.",
            search_aliases=["SEG", "smoothed energy guidance", "guidance", "attention blur"],
            inputs=[
                model_input(), scale_input(3.0),
                make_input(
                    io.Float, "blur_sigma", default=-1.0, min=-1.0, max=10000.0, step=0.1,
                    tooltip="Width of the blur in cells of the layer's grid. Below 0: infinitely wide (the strongest "
                    "and the paper's choice); 0: no blur, hence no guidance; 1 to 10: milder.",
                ),
                *percent_inputs(), layers_input(), fade_input("none", "linear"),
                share_input(), refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, blur_sigma: float, start_percent: float, end_percent: float,
        layers: str, fade: str = "none", share_layers: bool = True, refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        term = AttentionTerm(
            name="SEG",
            scale=scale,
            span=Span(start_percent, end_percent),
            fade=make_fade(fade),
            refresh=refresh,
            sites=chosen_sites(model, layers, all_sites(model, "attn1"), "smoothed energy"),
            apply=smoothed_attention(blur_sigma),
            share=share_layers,
        )
        return io.NodeOutput(add_term(model, term) if scale and blur_sigma else model)


def smoothed_attention(blur_sigma: float) -> Layer:
    """Returns a layer that blurs the queries of the picture over their grid by `blur_sigma` cells, in each frame.

    Below 0 it takes their mean. Positions that are encoded in the queries are blurred too, because the paper blurs the
    logits, which are linear in the queries.
    """

    def attend_with_blurred_queries(call: Call | DiTCall, below: Attend) -> Tensor:
        if isinstance(call, DiTCall):
            return below(call.with_picture_queries(lambda q, grid: blur_queries(q, grid, blur_sigma)))
        return below(with_queries(call, blur_queries(call.q, call.grid(call.q), blur_sigma)))

    return attend_with_blurred_queries
