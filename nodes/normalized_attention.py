"""Normalized Attention Guidance (2505.21179)."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..patches.normalized_attention import NegativeText, NormalizedAttention, add_normalized_attention
from ..patches.sites import find_transformers, unet_of
from ..patches.span import Span
from .schema import make_input, model_input, model_output, percent_inputs, schema
from .sockets import checked_mask, finite_tensor


class NormalizedAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_NormalizedAttentionGuidance",
            display_name="Normalized Attention Guidance (NAG)",
            category="reins/guidance",
            description="A negative prompt that works without CFG, as few-step models need it: pushes away from it "
            "inside the text attention (NAG). No further evaluation.",
            search_aliases=["NAG", "negative prompt", "normalized attention", "turbo", "lightning"],
            inputs=[
                model_input(),
                io.Conditioning.Input("negative", tooltip="What should not be seen; all its entries count."),
                make_input(
                    io.Float, "scale", default=2.0, min=0.0, max=100.0, step=0.01,
                    tooltip="How far the attention is pushed away from the negative. 0 turns the node off.",
                ),
                make_input(
                    io.Float, "tau", default=2.5, min=1.0, max=100.0, step=0.01,
                    tooltip="The attention gets at most so many times longer than without the push.",
                ),
                make_input(
                    io.Float, "alpha", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How much of the pushed attention is mixed in. 0 turns the node off.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, negative: list, scale: float, tau: float, alpha: float, start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:  # fmt: skip
        blocks = find_transformers(unet_of(model))
        if not blocks:
            raise ValueError("Normalized Attention Guidance needs text attention, but this model has none. Remove it.")
        texts = [_entry(*entry, blocks[0].context) for entry in _checked(negative)]
        if scale == 0 or alpha == 0:
            return io.NodeOutput(model)
        paths = {block.site("attn2"): f"{block.path}.attn2" for block in blocks}
        guidance = NormalizedAttention(texts, paths, scale, tau, alpha)
        return io.NodeOutput(add_normalized_attention(model, guidance, Span(start_percent, end_percent)))


def _checked(negative: Any) -> list:
    if not isinstance(negative, list) or not negative:
        raise ValueError("negative should be a prompt, but holds none. Connect a CLIP Text Encode.")
    return negative


def _entry(text: Any, said: dict[str, Any], width: int) -> NegativeText:
    if not isinstance(text, Tensor) or text.ndim != 3 or text.shape[-1] != width or 0 in text.shape:
        found = tuple(text.shape) if isinstance(text, Tensor) else type(text).__name__
        raise ValueError(
            f"negative should be a text of {width} numbers per token, as the model reads it, but is {found}. Encode it "
            f"with the CLIP of this model."
        )
    area = said.get("area")
    is_share = area is not None and area[0] == "percentage"
    mask = checked_mask(said.get("mask"), "The mask of negative")
    return NegativeText(
        text=finite_tensor(text, "negative", "finite numbers"),
        strength=said.get("strength", 1.0) * (said.get("mask_strength", 1.0) if mask is not None else 1.0),
        mask=mask,
        area=None if area is None else tuple(area[1:] if is_share else area),
        is_share=is_share,
        span=Span(said.get("start_percent", 0.0), said.get("end_percent", 1.0)),
    )
