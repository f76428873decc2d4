"""Makes the tokens of an IP-Adapter (2308.06721) of pictures, or of the output of an image encoder."""

from __future__ import annotations

from typing import Any

from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ..inputs.schema import make_input, schema
from ..inputs.sockets import (
    FaceEmbedsSocket,
    ImageTokensSocket,
    PeerEmbedsSocket,
    checked_image,
    checked_mask,
    hides_all,
)
from .encode import Encoding, Pictures, TokenRequest, encode_pictures, make_tokens
from .inputs_node import clip_vision_input, combining_inputs, ipadapter_input
from .load import as_ip_adapter
from .prompt import IPAdapter


class IPAdapterEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_IPAdapterEncode",
            display_name="IP-Adapter Encode",
            category="reins/ip-adapter",
            description="Turns one or several pictures, or a face, into image tokens for IP-Adapter Apply.",
            search_aliases=["ipadapter encoder", "image embeds", "image prompt", "combine embeds"],
            inputs=[
                ipadapter_input(),
                clip_vision_input(optional=True),
                make_input(
                    io.Image, "image", optional=True,
                    tooltip="The reference. A batch of several is combined as chosen below.",
                ),
                io.MultiType.Input(
                    "clip_vision_output", [io.ClipVisionOutput, PeerEmbedsSocket], optional=True,
                    tooltip="Instead of clip_vision and image: the output of an image encoder. Embeds of "
                    "ComfyUI_IPAdapter_plus are taken too.",
                ),
                make_input(
                    io.Image, "negative_image", optional=True,
                    tooltip="What the result should move away from, for the negative. A noisy picture works well.",
                ),
                FaceEmbedsSocket.Input(
                    "face_embeds", optional=True, tooltip="For FaceID files: the identities from Face Embeds."
                ),
                *combining_inputs(),
                make_input(
                    io.Mask, "mask", optional=True, tooltip="Which part of the reference counts; the rest is hidden."
                ),
            ],
            outputs=[ImageTokensSocket.Output(tooltip="For IP-Adapter Apply or Save Image Tokens.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, ipadapter: Any, clip_vision: ClipVisionModel | None = None, image: Tensor | None = None,
        clip_vision_output: Any = None, negative_image: Tensor | None = None, face_embeds: Tensor | None = None,
        image_weights: str = "", combine: str = "concat", uncond: str = "paper", fit: str = "crop",
        mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        adapter = as_ip_adapter(ipadapter)
        encoder = clip_vision or adapter.clip_vision
        check_encoder(adapter, encoder)
        positive, mask = as_encoding(clip_vision_output), checked_mask(mask, "mask")
        if image is not None and adapter.kind.reads:
            positive = encoded(adapter, encoder, Pictures(checked_image(image, "image"), fit, mask))
        elif mask is not None:
            raise ValueError("mask hides a part of image, but no image is connected. Connect one, or remove the mask.")
        negative = None
        if negative_image is not None and adapter.kind.reads:
            negative = encoded(adapter, encoder, Pictures(checked_image(negative_image, "negative_image"), fit))
        request = TokenRequest(positive, negative, face_embeds, encoder, image_weights, combine, uncond)
        tokens = make_tokens(adapter, request)
        return io.NodeOutput(tokens.emptied() if hides_all(mask, "mask", "IP-Adapter Encode") else tokens)


def encoded(adapter: IPAdapter, encoder: ClipVisionModel | None, pictures: Pictures) -> Encoding:
    """Returns what an adapter reads of the encoding of pictures. Raises ValueError if there is no encoder."""
    if encoder is None:
        raise ValueError(
            "An image needs a clip_vision to be encoded, but none is connected. Connect Load CLIP Vision, or a "
            "clip_vision_output."
        )
    return encode_pictures(encoder, pictures, adapter.kind.reads)


def check_encoder(adapter: IPAdapter, encoder: ClipVisionModel | None) -> None:
    """Raises ValueError if an adapter gets an encoder for pictures of any size, as SigLIP 2 NaFlex is one."""
    if encoder is not None and adapter.kind.reads and encoder.image_size <= 0:
        raise ValueError(
            f"{adapter.name} reads an image encoder for pictures of one size, but clip_vision takes them in any size, "
            f"as SigLIP 2 NaFlex does. Load {adapter.kind.encoder} as clip_vision."
        )


def as_encoding(output: Any) -> Encoding | None:
    """Returns the encoding in a CLIP_VISION_OUTPUT, or in a tensor of embeddings (b, c) or hidden states (b, n, c).

    Raises ValueError if the tensor has another shape.
    """
    if output is None:
        return None
    if isinstance(output, Tensor):
        if output.ndim not in (2, 3):
            raise ValueError(
                f"clip_vision_output should hold embeddings (images, width) or hidden states (images, tokens, width), "
                f"but is {tuple(output.shape)}. Encode the image again."
            )
        return Encoding(output, None) if output.ndim == 2 else Encoding(None, output)
    return Encoding(getattr(output, "image_embeds", None), getattr(output, "penultimate_hidden_states", None))
