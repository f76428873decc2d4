"""Guidance by a picture (the cheap form of Universal Guidance, 2302.07121)."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..models.image_loss import LOSSES
from ..patches.image_guidance import Target, add_image_guidance
from ..patches.span import Span
from .schema import make_input, model_input, model_output, percent_inputs, schema
from .sockets import checked_image, checked_latent


class ImageGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_ImageGuidance",
            display_name="Image Guidance",
            category="reins/guidance",
            description="Pulls the result towards the colours, the rough layout or the edges of a given picture. No "
            "training and no evaluation: a gradient on the predicted picture (a cheap form of Universal Guidance).",
            search_aliases=["universal guidance", "loss guidance", "colour transfer", "color match", "palette"],
            inputs=[
                model_input(),
                io.Image.Input("image", optional=True, tooltip="The picture to be like, by the colours of a preview."),
                io.Latent.Input("latent", optional=True, tooltip="The same as a latent, exactly; instead of image."),
                make_input(
                    io.Combo, "loss", options=list(LOSSES), default="colour histogram",
                    tooltip="colour histogram: which colours there are and how many, wherever. low frequencies: the "
                    "blurred picture, place by place. edges: how steep the picture is at each place.",
                ),
                make_input(
                    io.Float, "scale", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="How far each step is pulled; 1 is about all the way, and 2 too far. 0 turns the node off.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, loss: str, scale: float, start_percent: float, end_percent: float,
        image: Tensor | None = None, latent: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        if (image is None) == (latent is None):
            raise ValueError(
                f"Image Guidance needs an image or a latent to be like, but {'neither' if image is None else 'both'} "
                f"are connected. Connect one of them."
            )
        target = _of_latent(model, latent) if image is None else _of_image(model, image)
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_image_guidance(model, target, loss, scale, Span(start_percent, end_percent)))


def _of_latent(model: ModelPatcher, latent: Any) -> Target:
    samples = checked_latent(latent, "latent")
    wanted = model.model.latent_format.latent_channels
    if samples.shape[1] != wanted:
        raise ValueError(
            f"latent should have {wanted} channels for this model, but has {samples.shape[1]}. Encode the picture with "
            f"the VAE of this model."
        )
    return Target(model.model.process_latent_in(samples))


def _of_image(model: ModelPatcher, image: Tensor) -> Target:
    """The host's previews show a cell as the colour `latent @ factors + bias`, from -1 to 1."""
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        raise ValueError(
            f"The colours of {type(latent_format).__name__} latents are not known, so image cannot be compared with "
            f"them. Connect VAE Encode to latent in its place."
        )
    factors = torch.tensor(latent_format.latent_rgb_factors)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    offset = torch.zeros(factors.shape[1]) if bias is None else torch.tensor(bias)
    return Target(checked_image(image, "image")[..., :3].movedim(-1, 1) * 2 - 1, factors, offset)
