"""Perturbed-Attention Guidance (2403.17377)."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.dit.call import DiTCall
from ...engine.find import all_sites
from ...engine.guidance import AttentionTerm, add_term
from ...engine.layers.attention import Attend, Call, Layer
from ...engine.span import Span
from ...models.guidance.perturbed_attention import attend_to_itself_and
from ..inputs.auto_layers import chosen_sites
from ..inputs.fade import adaptive_input, fade_input, make_fade
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

SEE_TEXT, THEMSELVES = IMAGE_TOKENS = ("see text", "themselves")


class PerturbedAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_PerturbedAttentionGuidance",
            display_name="PAG – Perturbed-Attention Guidance",
            category="reins/guidance",
            description="Clears up structure: steers away from a prediction whose self-attention is switched off "
            "(PAG). Works with and without CFG; one more evaluation per step.",
            search_aliases=["PAG", "perturbed-attention guidance", "perturbed attention", "structure"],
            inputs=[
                model_input(), scale_input(3.0), *percent_inputs(), layers_input(),
                fade_input("none", "linear", "adaptive (peer)"), adaptive_input(), share_input(),
                make_input(
                    io.Combo, "image_tokens", options=list(IMAGE_TOKENS), default=SEE_TEXT, optional=True,
                    advanced=True,
                    tooltip="Of transformers with joint attention (SD3, Flux). see text: a token of the picture sees "
                    "itself and the text. themselves: itself alone. Other models have one form, and this is ignored.",
                ),
                refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float, layers: str,
        fade: str = "none", adaptive_scale: float = 0.1, share_layers: bool = True,
        image_tokens: str = SEE_TEXT, refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        term = AttentionTerm(
            name="PAG",
            scale=scale,
            span=Span(start_percent, end_percent),
            fade=make_fade(fade, adaptive_scale),
            refresh=refresh,
            sites=chosen_sites(model, layers, all_sites(model, "attn1"), "perturbed attention"),
            apply=perturbed_attention(image_tokens),
            share=share_layers,
        )
        return io.NodeOutput(add_term(model, term) if scale else model)


def perturbed_attention(image_tokens: str) -> Layer:
    """Returns the layer of a form of the method. The forms differ in joint attention alone."""

    def perturb(call: Call | DiTCall, below: Attend) -> Tensor:
        if image_tokens == SEE_TEXT and isinstance(call, DiTCall):
            return attention_to_text(call, below)
        return identity_attention(call, below)

    return perturb


def identity_attention(call: Call | DiTCall, below: Attend) -> Tensor:
    """Returns the values (b, tokens, c), which is attention with the identity as its map (equation 13).

    In a transformer these are the values of the picture. What is beside it in the sequence attends as ever.
    Raises RuntimeError if queries and values differ in number.
    """
    if isinstance(call, DiTCall):
        return _of_picture(call, below, call.values()[:, call.picture])
    if call.q.shape != call.v.shape:
        call.grid(call.v)  # raises if another patch adds keys and values
        raise RuntimeError(
            f"Perturbed-Attention Guidance needs one query per value, but found {call.q.shape[1]} queries and "
            f"{call.v.shape[1]} values: another patch merges tokens. Remove that patch from the model."
        )
    return call.v


def attention_to_text(call: DiTCall, below: Attend) -> Tensor:
    """Returns joint attention (b, tokens, c) in which a token of the picture sees itself and what is not the picture.

    This is the form of the paper's method in diffusers' pipelines for Stable Diffusion 3.
    """
    if not call.rest:
        return identity_attention(call, below)
    q, k, v = (part[:, :, call.picture] for part in (call.q, call.k, call.v))
    others = tuple(torch.cat([part[:, :, rest] for rest in call.rest], 2) for part in (call.k, call.v))
    return _of_picture(call, below, attend_to_itself_and(q, k, v, others, call.mask_of_rest()))


def _of_picture(call: DiTCall, below: Attend, of_picture: Tensor) -> Tensor:
    """Returns the tokens (b, tokens, c) with those of the picture as given, and all others as they attend."""
    if not call.rest:
        return of_picture
    parts = {rest.start: below(call.of_queries(rest)) for rest in call.rest}
    parts[call.picture.start] = of_picture
    return torch.cat([parts[start] for start in sorted(parts)], 1)
