"""Skip Layer Guidance: a prediction of a transformer that leaves out some of its blocks.

Stability AI published it with Stable Diffusion 3.5 Medium. Spatiotemporal Skip Guidance (2411.18664) is the same for
video, with its residual form (STG-R).
"""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...engine.dit.block_layers import Block, BlockCall, Streams
from ...engine.find import all_sites, dit_family
from ...engine.guidance import BlockTerm, add_term
from ...engine.span import Span
from ..inputs.auto_layers import chosen_sites
from ..inputs.schema import (
    layers_input,
    model_input,
    model_output,
    percent_inputs,
    refresh_input,
    scale_input,
    schema,
    share_input,
)


class SkipLayerGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SkipLayerGuidance",
            display_name="SLG/STG – Skip Layer Guidance",
            category="reins/guidance",
            description="Clears up structure and anatomy: steers away from a prediction that skips some blocks of a "
            "transformer (SLG; on video STG). Works with and without CFG; less than one more evaluation per step.",
            search_aliases=["SLG", "STG", "skip layer guidance", "spatiotemporal skip", "guidance", "structure"],
            inputs=[
                model_input(), scale_input(2.8), *percent_inputs(0.2, start=0.01),
                layers_input("blocks to skip", "b7-9"), share_input(), refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float, layers: str,
        share_layers: bool = True, refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        sites = all_sites(model, "attn1")
        if dit_family(model) is None:
            raise ValueError(
                f"Skip Layer Guidance skips blocks of a transformer, but the model is {type(model.model).__name__}, a "
                f"UNet, whose blocks change the size of the picture. Use PAG or SEG."
            )
        term = BlockTerm(
            name="SLG", scale=scale, span=Span(start_percent, end_percent), change=skip_block, share=share_layers,
            sites=chosen_sites(model, layers, sites, "skipped layers"), refresh=refresh,
        )  # fmt: skip
        return io.NodeOutput(add_term(model, term) if scale else model)


def skip_block(call: BlockCall, below: Block) -> Streams:
    """Returns what the block was given, as if it were not there."""
    return call.streams
