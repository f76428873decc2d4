"""Guidance by a picture (the cheap form of Universal Guidance, 2302.07121): a loss on what the model predicts.

The gradient is that of the loss alone, at the guided prediction, and not carried back through the network. With an
image the loss is on the colours that the host's own previews show of a latent, a linear map; with a latent on itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ..models.image_loss import Loss, loss_gradient
from .frames import clamped
from .guidance import in_span, install_guidance
from .run import run_of
from .scope import Args, add_post_cfg
from .span import Span


@dataclass(frozen=True, eq=False)
class Target:
    """A picture to be like: values (n, c, h, w) of any size, and how they are had of a latent.

    `colours` (latent channels, c) and `offset` (c,) make them of a latent's cell; None for the latent itself.
    """

    values: Tensor
    colours: Tensor | None = None
    offset: Tensor | None = None

    def shown(self, latent: Tensor) -> Tensor:
        """What the loss sees of a latent (b, c, h, w)."""
        if self.colours is None:
            return latent
        colours, offset = self.colours.to(latent), self.offset.to(latent)
        return torch.einsum("bchw,cr->brhw", latent, colours) + offset[:, None, None]

    def carried_back(self, gradient: Tensor) -> Tensor:
        """A gradient of what is shown as one of the latent, so that a step of length 1 does not overshoot."""
        if self.colours is None:
            return gradient
        colours = self.colours.to(gradient)
        longest = torch.linalg.matrix_norm(self.colours.float(), 2) ** 2
        return torch.einsum("brhw,cr->bchw", gradient, colours) / longest.to(gradient)

    def fitted(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """(b, c, h, w): one for each picture that is sampled, at its size; beyond the last it is the last."""
        h, w = shape[-2:]
        smaller = h < self.values.shape[-2] or w < self.values.shape[-1]
        sized = functional.interpolate(self.values.float(), (h, w), mode="area" if smaller else "bilinear")
        return sized[clamped(range(shape[0]), len(sized))].to(like)


def add_image_guidance(model: ModelPatcher, target: Target, loss: Loss, scale: float, span: Span) -> ModelPatcher:
    """A clone of `model` whose result so far is moved down the gradient of a loss against the target."""

    def move(args: Args) -> Tensor:
        denoised = args["denoised"]
        if args["cond"] is None or not in_span(span, args):
            return denoised
        if denoised.ndim != 4:
            raise RuntimeError(
                f"Image Guidance takes latents of pictures, of four dimensions, but found {denoised.ndim}. Remove it "
                f"from this model."
            )
        shown = target.shown(denoised)
        key = (target, tuple(shown.shape), shown.dtype, shown.device)
        wanted = run_of(args["model_options"]).once(key, lambda: target.fitted(shown.shape, shown))
        return denoised - scale * target.carried_back(loss_gradient(shown, wanted, loss))

    model = model.clone()
    add_post_cfg(model, f"image: {loss}", move)
    install_guidance(model)
    return model
