"""IP-Adapter (2308.06721): prompts a model with pictures."""

from __future__ import annotations

from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.span import Span
from ...models.ip_adapter.combine import copy_logits
from ...models.ip_adapter.weights import PEER_NAMES, PEER_SCALINGS, SCALINGS, WEIGHT_TYPES, Strength
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import ImageTokensSocket, checked_mask, hides_all
from .attention import UNetImagePrompt, add_image_prompt
from .encode_node import IPAdapterEncode
from .inputs_node import clip_vision_input, ipadapter_input, mask_input, tuning_inputs, weight_input
from .load import add_lora, as_ip_adapter, match_layers, narrowed, places_of
from .prompt import ImageTokens, IPAdapter
from .transformer_attention import TransformerImagePrompt, add_transformer_image_prompt


class IPAdapterApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_IPAdapterApply",
            display_name="IP-Adapter Apply",
            category="reins/ip-adapter",
            description="Prompts the model with image tokens beside the text: content, style, composition or a face, "
            "per layer, per area, per frame. Several in a row add up in any order.",
            search_aliases=["ipadapter advanced", "style transfer", "composition", "image prompt", "FaceID"],
            inputs=[
                model_input(), ipadapter_input(),
                ImageTokensSocket.Input("tokens", tooltip="From IP-Adapter Encode or Load Image Tokens."),
                weight_input(),
                make_input(
                    io.Combo, "weight_type", options=list(WEIGHT_TYPES), default="linear",
                    tooltip="Which layers listen, and how much: " + " · ".join(WEIGHT_TYPES) + ". Transformers take "
                    "the first five and custom.",
                ),
                make_input(
                    io.String, "layer_weights", default="", placeholder="3:0.5, 6:1.0", advanced=True,
                    tooltip="For custom: layer and weight pairs such as 3:0.5, 6:1.0. Layers count in the order in "
                    "which the model runs, the middle included. On a transformer they are its blocks.",
                ),
                make_input(
                    io.Combo, "scaling", options=list(SCALINGS), default=SCALINGS[0], advanced=True,
                    tooltip="What the weight multiplies. V only: the image's answer, as in the paper. K+V: its "
                    "attention too. K+V with C penalty: less in narrow layers. K+mean(V) with C penalty: the mean of "
                    "the answer alone. Transformers take the first two.",
                ),
                *percent_inputs(), mask_input(),
                *tuning_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, weight_type: str, scaling: str) -> bool | str:
        """Takes the names of ComfyUI_IPAdapter_plus too, so that old graphs run."""
        for name, value, ours, theirs in (
            ("weight_type", weight_type, WEIGHT_TYPES, PEER_NAMES),
            ("scaling", scaling, SCALINGS, PEER_SCALINGS),
        ):
            if value not in ours and value not in theirs:
                return f"{name} should be one of {', '.join(ours)}, but is {value!r}"
        return True

    @classmethod
    def execute(
        cls, model: ModelPatcher, ipadapter: Any, tokens: ImageTokens, weight: float = 1.0, weight_type: str = "linear",
        layer_weights: str = "", scaling: str = "V only", start_percent: float = 0.0, end_percent: float = 1.0,
        mask: Tensor | None = None, per_frame: bool = False, composition_weight: float = 1.0, boost: float = 1.0,
        lora_strength: float = 1.0, peer_compatible: bool = False, only_for: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        adapter, mask = as_ip_adapter(ipadapter), checked_mask(mask, "mask")
        check_tokens(tokens, adapter)
        weight_type, scaling = PEER_NAMES.get(weight_type, weight_type), PEER_SCALINGS.get(scaling, scaling)
        if adapter.kind.form != "unet" and "penalty" in scaling:
            raise ValueError(
                f"scaling {scaling!r} weighs narrow layers of a UNet less, but {adapter.name} is for a transformer, "
                f"whose layers are all of one width. Choose V only or K+V."
            )
        strength = Strength(weight, weight_type, layer_weights, composition_weight, boost)
        by_place = strength.by_place(places_of(adapter, model))
        if peer_compatible:
            by_place = {place: layer for place, layer in by_place.items() if place.block != "middle"}
        sites = match_layers(adapter, model, by_place)
        if weight == 0 or not sites or tokens.is_empty or hides_all(mask, "mask", "IP-Adapter"):
            return io.NodeOutput(model)
        cond, uncond = narrowed(adapter, model, tokens.cond, tokens.black if peer_compatible else tokens.uncond)
        is_for_unet = adapter.kind.form == "unet"
        make = UNetImagePrompt if is_for_unet else TransformerImagePrompt
        prompt = make(
            adapter=adapter, cond=cond, uncond=uncond if per_frame else uncond.expand_as(cond), weights=tokens.weights,
            copies=None if per_frame else copy_logits(tokens.weights), sites=sites,
            scaling=scaling, mask=mask, per_frame=per_frame, only_for=only_for.strip(),
        )  # fmt: skip
        if adapter.lora and lora_strength:
            model = add_lora(adapter, model, lora_strength)
        add = add_image_prompt if is_for_unet else add_transformer_image_prompt
        return io.NodeOutput(add(model, prompt, Span(start_percent, end_percent)))


class IPAdapterSimple(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_IPAdapter",
            display_name="IP-Adapter",
            category="reins/ip-adapter",
            description="Prompts the model with a picture beside the text: IP-Adapter Encode and IP-Adapter Apply in "
            "one, with the settings that most graphs need.",
            search_aliases=["ipadapter", "image prompt", "reference image"],
            inputs=[
                model_input(), ipadapter_input(), clip_vision_input(),
                make_input(io.Image, "image", tooltip="The reference. Of several pictures the model looks at all."),
                weight_input(), *percent_inputs(), mask_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, ipadapter: Any, clip_vision: ClipVisionModel, image: Tensor, weight: float = 1.0,
        start_percent: float = 0.0, end_percent: float = 1.0, mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        adapter = as_ip_adapter(ipadapter)
        if adapter.kind.face:
            raise ValueError(
                f"{adapter.name} is a FaceID file and needs the identity of a face, but this node has no input for it. "
                f"Use Face Embeds, IP-Adapter Encode and IP-Adapter Apply."
            )
        (tokens,) = IPAdapterEncode.execute(adapter, clip_vision, image).result
        return IPAdapterApply.execute(
            model, adapter, tokens, weight, start_percent=start_percent, end_percent=end_percent, mask=mask
        )


def check_tokens(tokens: ImageTokens, adapter: IPAdapter) -> None:
    """Raises ValueError if another file made the tokens, or if they have NaN."""
    if not isinstance(tokens, ImageTokens):
        raise ValueError(
            f"tokens should come from IP-Adapter Encode or Load Image Tokens, but are {type(tokens).__name__}. Put "
            f"IP-Adapter Encode between them."
        )
    context = adapter.kind.context
    if tokens.cond.shape[-1] != context or tokens.fingerprint != adapter.fingerprint:
        raise ValueError(
            f"{adapter.name} reads its own tokens, {context} wide, but these are {tokens.cond.shape[-1]} wide and "
            f"were made by {tokens.made_by}. Encode the image with the same file that is applied."
        )
    if not all(torch.isfinite(part).all() for part in (tokens.cond, tokens.uncond, tokens.black)):
        raise ValueError("tokens hold numbers that are not finite (NaN). Look at the image that they were made of.")
