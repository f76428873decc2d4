"""Perturbed-Attention Guidance (2403.17377)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.guidance import AttentionTerm, add_term
from ...engine.layers.attention import Attend, Call
from ...engine.span import Span
from ...engine.unet import find_sites
from ..inputs.fade import adaptive_input, fade_input, make_fade
from ..inputs.layers import parse_layers
from ..inputs.schema import layers_input, model_input, model_output, percent_inputs, scale_input, schema, share_input


class PerturbedAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_PerturbedAttentionGuidance",
            display_name="Perturbed-Attention Guidance (PAG)",
            category="reins/guidance",
            description="Clears up structure: steers away from a prediction whose self-attention is switched off "
            "(PAG). Works with and without CFG; one more evaluation per step.",
            search_aliases=["PAG", "perturbed attention", "guidance", "structure"],
            inputs=[
                model_input(), scale_input(3.0), *percent_inputs(), layers_input(),
                fade_input("none", "linear", "adaptive (peer)"), adaptive_input(), share_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float, layers: str,
        fade: str = "none", adaptive_scale: float = 0.1, share_layers: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        term = AttentionTerm(
            name="PAG",
            scale=scale,
            span=Span(start_percent, end_percent),
            fade=make_fade(fade, adaptive_scale),
            sites=tuple(parse_layers(layers, find_sites(model, "attn1"))),
            apply=identity_attention,
            share=share_layers,
        )
        return io.NodeOutput(add_term(model, term) if scale else model)


def identity_attention(call: Call, below: Attend) -> Tensor:
    """Returns the values (b, tokens, c), which is attention with the identity as its map (equation 13).

    Raises RuntimeError if queries and values differ in number.
    """
    if call.q.shape != call.v.shape:
        call.grid(call.v)  # raises if another patch adds keys and values
        raise RuntimeError(
            f"Perturbed-Attention Guidance needs one query per value, but found {call.q.shape[1]} queries and "
            f"{call.v.shape[1]} values: another patch merges tokens. Remove that patch from the model."
        )
    return call.v
