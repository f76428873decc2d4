"""Token Perturbation Guidance (2506.10036)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..patches.guidance import add_term
from ..patches.sites import find_sites
from ..patches.span import Span
from ..patches.token_perturbation import TokenTerm, shuffle_tokens
from .layers import parse_layers
from .schema import layers_input, model_input, model_output, percent_inputs, scale_input, schema, share_input


class TokenPerturbationGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_TokenPerturbationGuidance",
            display_name="Token Perturbation Guidance (TPG)",
            category="reins/guidance",
            description="Steers away from a prediction whose parts are shuffled inside the network (TPG): structure, "
            "with and without CFG. Its random numbers are its own; one more evaluation per step.",
            search_aliases=["TPG", "token perturbation", "shuffle", "guidance", "structure"],
            inputs=[
                model_input(), scale_input(3.0), *percent_inputs(), layers_input("transformer blocks to shuffle"),
                share_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float, layers: str,
        share_layers: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        term = TokenTerm(
            name="TPG",
            scale=scale,
            span=Span(start_percent, end_percent),
            sites=tuple(parse_layers(layers, find_sites(model, "attn1"))),
            change=shuffle_tokens,
            share=share_layers,
        )
        return io.NodeOutput(add_term(model, term) if scale else model)
