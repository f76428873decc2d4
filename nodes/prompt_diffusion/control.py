"""Prompt Diffusion (2305.01115) as a ControlNet of the host, for the host's own Apply nodes.

The host does strength, range, chains, masks and areas. It resizes the example to the query, repeats it to the batch of
the query, and puts the six channels of the example after the three of the query, as the network takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.controlnet
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...models.prompt_diffusion.network import QUERY
from ..inputs.sockets import CHANNELS, picture_numbers


def signed(image: Tensor) -> Tensor:
    """Returns a picture (b, c, h, w) in 0..1, as the host has it, in the range -1..1 of the training."""
    return image * 2 - 1


def unchanged(image: Tensor) -> Tensor:
    """Returns a picture (b, c, h, w) as it is."""
    return image


Scale = Callable[[Tensor], Tensor]
RANGES: Mapping[str, Scale] = {"-1..1 (as trained)": signed, "0..1 (diffusers example)": unchanged}


class Widths(NamedTuple):
    """The widths of features and text, by which a network belongs to a family of models."""

    features: int | None
    text: int | None


class PromptDiffusion(comfy.controlnet.ControlNet):
    """A ControlNet with an example.

    `pair` (n, 6, h, w) is the example, source before target, in the range that the network takes.
    """

    pair: Tensor | None = None
    name: str = ""
    widths: Widths | None = None

    def set_cond_hint(
        self, cond_hint: Tensor, strength: float = 1.0, timestep_percent_range: tuple[float, float] = (0.0, 1.0),
        vae: Any = None, extra_concat: Sequence[Tensor] = (),
    ) -> PromptDiffusion:  # fmt: skip
        """Sets the query (n, 3 or 4, h, w) in 0..1, as Apply nodes do, repeated if there are more examples.

        Raises ValueError if there is no example, or if the query is no picture.
        """
        if self.pair is None:
            raise ValueError(
                f"{self.name} should be shown an example, but has none: connect Prompt Diffusion Example between the "
                f"loader and Apply."
            )
        if cond_hint.shape[1] not in CHANNELS:
            raise ValueError(
                f"image should have red, green and blue, but has {cond_hint.shape[1]} channels. Connect an IMAGE."
            )
        query = picture_numbers(cond_hint[:, :QUERY], "image")
        query = comfy.utils.repeat_to_batch_size(query, max(len(query), len(self.pair)))
        return super().set_cond_hint(
            query, strength, timestep_percent_range, vae=vae, extra_concat=[*extra_concat, self.pair]
        )

    def pre_run(self, model: Any, percent_to_timestep_function: Callable[[float], float]) -> None:
        """Checks the model before the run, because the host would ignore a control of other widths.

        Raises ValueError if the model is of another family.
        """
        network = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)  # under a compiled one
        if not isinstance(network, UNetModel):
            raise ValueError(
                f"{self.name} steers the UNet of SD1.5, but the model is {type(model).__name__} "
                f"({type(network).__name__}). A ControlNet adds its features between the blocks of the UNet that it "
                f"was trained for. Connect an SD1.5 model or remove the ControlNet."
            )
        config = model.model_config.unet_config
        widths = Widths(config.get("model_channels"), config.get("context_dim"))
        if self.widths not in (None, widths):
            raise ValueError(
                f"{self.name} is made for models with {self.widths.features} channels and texts of "
                f"{self.widths.text} numbers, but {type(model).__name__} has {widths.features} and {widths.text}. "
                f"Connect a model of the kind that the file was trained on (SD1.5)."
            )
        super().pre_run(model, percent_to_timestep_function)

    def copy(self) -> PromptDiffusion:
        """Returns a copy that is a Prompt Diffusion too. The host's method alone would make a plain ControlNet."""
        control = super().copy()
        control.__class__ = type(self)
        control.pair, control.name, control.widths = self.pair, self.name, self.widths
        return control


def with_example(control: PromptDiffusion, pair: Tensor, scale: Scale, drop: bool) -> PromptDiffusion:
    """Returns a copy with an example (n, 6, h, w) in 0..1.

    With `drop` the example is all zeros (mid grey in -1..1), which stand for no example in the training.
    """
    control = control.copy()
    control.preprocess_image = scale
    control.pair = torch.zeros_like(pair) if drop else scale(pair)
    return control


def pair_of(source: Tensor, target: Tensor) -> Tensor:
    """Returns pairs (n, 6, h, w) of pictures (n or 1, h, w, 3). A target of another size is stretched to its source.

    In the run the host crops a pair about its centre to the shape of the latent, and takes the nearest pixels. So
    pictures of eight times the latent's size lose nothing. Raises ValueError if source and target differ in number.
    """
    source, target = (image.movedim(-1, 1) for image in (source, target))
    if source.shape[2:] != target.shape[2:]:
        target = comfy.utils.common_upscale(target, source.shape[3], source.shape[2], "lanczos", "disabled")
    if len(source) != len(target) and 1 not in (len(source), len(target)):
        raise ValueError(
            f"source and target should be the same number of pictures, or one of them a single one, but are "
            f"{len(source)} and {len(target)}. Make each example of one source and one target."
        )
    count = max(len(source), len(target))
    return torch.cat([image.expand(count, -1, -1, -1) for image in (source, target)], 1)


def checked_prompt_diffusion(control: Any) -> PromptDiffusion:
    """Returns a Prompt Diffusion as it is. Raises ValueError if it is something else."""
    if not isinstance(control, PromptDiffusion):
        is_control = isinstance(control, comfy.controlnet.ControlBase)
        kind = "an ordinary ControlNet" if is_control else type(control).__name__
        raise ValueError(
            f"control_net should come from Load Prompt Diffusion, but is {kind}. Put that node before Prompt "
            f"Diffusion Example."
        )
    return control
