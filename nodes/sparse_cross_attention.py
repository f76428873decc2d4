"""PLADIS (2503.07677)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..patches.sites import find_sites
from ..patches.span import Span
from ..patches.sparse_cross_attention import add_sparse_attention
from .schema import make_input, model_input, model_output, percent_inputs, schema


class SparseCrossAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SparseCrossAttention",
            display_name="Sparse Cross-Attention (PLADIS)",
            category="reins/guidance",
            description="Follows the words of the prompt more closely: each place attends to few of them (PLADIS, with "
            "exact entmax). No further evaluation, and no CFG needed.",
            search_aliases=["PLADIS", "entmax", "sparse attention", "prompt following"],
            inputs=[
                model_input(),
                make_input(
                    io.Float, "scale", default=2.0, min=0.0, max=10.0, step=0.01,
                    tooltip="0: the model's own attention. 1: sparse attention. Above: more than sparse, 2 is the "
                    "paper's choice.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        sites = find_sites(model, "attn2")
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_sparse_attention(model, sites, scale, Span(start_percent, end_percent)))
