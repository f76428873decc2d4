"""Inputs that the IP-Adapter nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from ...models.ip_adapter.combine import COMBINES
from ..inputs.schema import make_input
from ..inputs.sockets import IPAdapterSocket


def ipadapter_input() -> io.Input:
    return IPAdapterSocket.Input(
        "ipadapter", tooltip="From Load IP-Adapter. The loaders of ComfyUI_IPAdapter_plus work too."
    )


def clip_vision_input(optional: bool = False) -> io.Input:
    return make_input(
        io.ClipVision, "clip_vision", optional=optional,
        tooltip="The image encoder that the file was trained with. A wrong one is refused, and the message names the "
        "right one.",
    )  # fmt: skip


def weight_input() -> io.Input:
    return make_input(
        io.Float, "weight", default=1.0, min=-1.0, max=5.0, step=0.01,
        tooltip="How strongly the image acts. 1 suits an empty prompt, 0.5 a prompt that says something. 0: off.",
    )  # fmt: skip


def mask_input() -> io.Input:
    return make_input(
        io.Mask, "mask", optional=True,
        tooltip="Where in the result the image acts, any size; a batch of masks goes picture by picture.",
    )  # fmt: skip


def combining_inputs() -> list[io.Input]:
    return [
        make_input(
            io.String, "image_weights", default="", placeholder="1, 0.5", advanced=True,
            tooltip="One number per image, such as 1, 0.5. In a concat, an image of weight 2 counts as two "
            "copies; with per_frame each is the strength of its frame. Empty: all 1.",
        ),
        make_input(
            io.Combo, "combine", options=list(COMBINES), default="concat",
            tooltip="concat: the model looks at all images. average: one image between them. norm average: "
            "between their directions. add, subtract: the sum, or the first without the others. slerp: "
            "between them along the sphere.",
        ),
        make_input(
            io.Combo, "uncond", options=["paper", "black"], default="paper", advanced=True,
            tooltip="What the negative sees. paper: nothing, as in training. black: a black picture, as in "
            "ComfyUI_IPAdapter_plus. With XLabs' files both are a black picture.",
        ),
        make_input(
            io.Combo, "fit", options=["crop", "squash", "pad"], default="crop",
            tooltip="How a picture becomes square. crop: its middle. squash: all of it, distorted, as the "
            "authors advise, above all with SigLIP. pad: all of it on a neutral ground.",
        ),
    ]  # fmt: skip


def tuning_inputs() -> list[io.Input]:
    """Returns the inputs that most graphs leave at their defaults."""
    return [
        make_input(
            io.Boolean, "per_frame", default=False, optional=True,
            tooltip="Image n prompts picture n of the batch, for animations, instead of all images together.",
        ),
        make_input(
            io.Float, "composition_weight", default=1.0, min=-1.0, max=5.0, step=0.01, optional=True, advanced=True,
            tooltip="The composition's own weight in the types that name style and composition.",
        ),
        make_input(
            io.Float, "boost", default=1.0, min=-5.0, max=5.0, step=0.01, optional=True, advanced=True,
            tooltip="How hard the precise types push the other layers away from the image.",
        ),
        make_input(
            io.Float, "lora_strength", default=1.0, min=-10.0, max=10.0, step=0.01, optional=True, advanced=True,
            tooltip="Strength of the LoRA inside a FaceID file. Do not load its separate LoRA file as well.",
        ),
        make_input(
            io.Boolean, "peer_compatible", default=False, optional=True, advanced=True,
            tooltip="Comes close to pictures made with ComfyUI_IPAdapter_plus: no middle block, a black picture for "
            "the negative.",
        ),
        make_input(
            io.String, "only_for", default="", placeholder="left", optional=True, advanced=True,
            tooltip="A name. The node then acts only on prompts that got this name from IP-Adapter for Conditioning. "
            "Empty: on all.",
        ),
    ]  # fmt: skip
