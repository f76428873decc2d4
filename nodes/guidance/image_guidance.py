"""Guidance by a picture (the cheap form of Universal Guidance, 2302.07121): a loss on what the model predicts.

The gradient is that of the loss alone, at the guided prediction, and is not carried back through the network. With an
image as reference, the loss compares the colours of the host's previews, a linear map of the latent. With a latent as
reference, it compares latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ...engine.effects import watch
from ...engine.guidance import install_guidance
from ...engine.latents import check_before_sampling, check_format, check_shape
from ...engine.rows.images import clamped
from ...engine.run import run_of
from ...engine.scope import Args, add_post_cfg
from ...engine.span import Span
from ...engine.step import in_span
from ...models.guidance.image_loss import LOSSES, Loss, loss_gradient
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import checked_image, checked_latent

NAME = "Image Guidance"


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
                io.Image.Input(
                    "image", optional=True, tooltip="The reference picture, compared in the rough colours of a preview."
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The reference as a latent, which is exact. Instead of image."
                ),
                make_input(
                    io.Combo, "loss", options=list(LOSSES), default="colour histogram",
                    tooltip="colour histogram: which colours there are and how much of each, wherever they lie. low "
                    "frequencies: the blurred picture, place by place. edges: how steep the picture is at each place.",
                ),
                make_input(
                    io.Float, "scale", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="How far each step is pulled. 1 is about all the way, 2 is too far. 0 turns the node off.",
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
            number = "neither" if image is None else "both"
            raise ValueError(
                f"Image Guidance needs an image or a latent as its reference, but {number} are connected. Connect one "
                f"of them."
            )
        check_format(model, NAME)
        target = _of_latent(model, latent) if image is None else _of_image(model, image)
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_image_guidance(model, target, loss, scale, Span(start_percent, end_percent)))


@dataclass(frozen=True, eq=False)
class Target:
    """A reference picture: values (n, c, h, w) of any size, and the map from latents to such values.

    `colours` (channels, c) and `offset` (c,) map a cell of a latent. They are None if the values are a latent.
    """

    values: Tensor
    colours: Tensor | None = None
    offset: Tensor | None = None

    def shown(self, latent: Tensor) -> Tensor:
        """Returns the values that the loss compares, (b, c, h, w), of a latent (b, channels, h, w)."""
        if self.colours is None:
            return latent
        colours, offset = self.colours.to(latent), self.offset.to(latent)
        return torch.einsum("bchw,cr->brhw", latent, colours) + offset[:, None, None]

    def carried_back(self, gradient: Tensor) -> Tensor:
        """Returns the gradient (b, channels, h, w) by the latent from that by its values, (b, c, h, w).

        It is scaled so that a step of length 1 does not overshoot.
        """
        if self.colours is None:
            return gradient
        colours = self.colours.to(gradient)
        longest = torch.linalg.matrix_norm(self.colours.float(), 2) ** 2
        return torch.einsum("brhw,cr->bchw", gradient, colours) / longest.to(gradient)

    def fitted(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns a reference (b, c, h, w) for each picture that is sampled, in its size. The last one is repeated."""
        h, w = shape[-2:]
        smaller = h < self.values.shape[-2] or w < self.values.shape[-1]
        sized = functional.interpolate(self.values.float(), (h, w), mode="area" if smaller else "bilinear")
        return sized[clamped(range(shape[0]), len(sized))].to(like)


def add_image_guidance(model: ModelPatcher, target: Target, loss: Loss, scale: float, span: Span) -> ModelPatcher:
    """Returns a clone of `model` whose result so far is moved down the gradient of a loss against the target."""

    def move(args: Args) -> Tensor:
        denoised = args["denoised"]
        if args["cond"] is None or not in_span(span, args):
            return denoised
        check_shape(denoised.shape, NAME)
        shown = target.shown(denoised.squeeze(2) if denoised.ndim == 5 else denoised)  # a video of one frame
        key = (target, tuple(shown.shape), shown.dtype, shown.device)
        reference = run_of(args["model_options"]).once(key, lambda: target.fitted(shown.shape, shown))
        gradient = target.carried_back(loss_gradient(shown, reference, loss))
        return denoised - scale * gradient.reshape(denoised.shape)

    model = model.clone()
    add_post_cfg(model, f"image: {loss}", move, watch(model, NAME, span))
    install_guidance(model)
    check_before_sampling(model, NAME)
    return model


def _of_latent(model: ModelPatcher, latent: Any) -> Target:
    latent_format = model.model.latent_format
    samples = checked_latent(_picture_of(latent) if latent_format.latent_dimensions == 3 else latent, "latent")
    channels = latent_format.latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"latent should have {channels} channels for this model, but has {samples.shape[1]}. Encode the picture "
            f"with the VAE of this model."
        )
    if latent_format.latent_dimensions == 3:  # which may have a mean for each channel, shaped for videos
        return Target(model.model.process_latent_in(samples.unsqueeze(2)).squeeze(2))
    return Target(model.model.process_latent_in(samples))


def _picture_of(latent: Any) -> Any:
    """Returns a LATENT as it is, or without its time axis if that has a single frame."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    is_frame = isinstance(samples, Tensor) and samples.ndim == 5 and samples.shape[2] == 1
    return {**latent, "samples": samples.squeeze(2)} if is_frame else latent


def _of_image(model: ModelPatcher, image: Tensor) -> Target:
    """Returns the reference in the colours of the host's previews: latent @ factors + bias, from -1 to 1."""
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        raise ValueError(
            f"The colours of {type(latent_format).__name__} latents are not known, so image cannot be compared with "
            f"them. Connect VAE Encode to latent instead."
        )
    factors = torch.tensor(latent_format.latent_rgb_factors)
    if len(factors) != latent_format.latent_channels:  # Flux2: the host rearranges cells for its preview
        raise ValueError(
            f"The colours of {type(latent_format).__name__} latents are known for {len(factors)} channels, but they "
            f"have {latent_format.latent_channels}, so image cannot be compared with them. Connect VAE Encode to "
            f"latent instead."
        )
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    offset = torch.zeros(factors.shape[1]) if bias is None else torch.tensor(bias)
    return Target(checked_image(image, "image").movedim(-1, 1) * 2 - 1, factors, offset)
