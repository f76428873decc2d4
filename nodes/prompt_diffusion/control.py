"""Prompt Diffusion (2305.01115) as a control of the host, for the host's own Apply nodes.

Strength, range, chains, masks and areas are all the host's. It resizes the example to the query, repeats it to the
query's batch and puts its six channels after the query's three, just as the network takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.controlnet
import comfy.utils
import torch
from torch import Tensor

from ...models.prompt_diffusion.network import QUERY


def signed(image: Tensor) -> Tensor:
    """From 0..1, of the host's pictures, to -1..1, on which the network was trained."""
    return image * 2 - 1


def unchanged(image: Tensor) -> Tensor:
    return image


Scale = Callable[[Tensor], Tensor]
RANGES: Mapping[str, Scale] = {"-1..1 (as trained)": signed, "0..1 (diffusers example)": unchanged}


class Widths(NamedTuple):
    """By which a network belongs to a family of models."""

    features: int | None
    text: int | None


class PromptDiffusion(comfy.controlnet.ControlNet):
    """`pair` is the example (n, 6, h, w), source before target, in the range that the network takes."""

    pair: Tensor | None = None
    name: str = ""
    widths: Widths | None = None

    def set_cond_hint(
        self, cond_hint: Tensor, strength: float = 1.0, timestep_percent_range: tuple[float, float] = (0.0, 1.0),
        vae: Any = None, extra_concat: Sequence[Tensor] = (),
    ) -> PromptDiffusion:  # fmt: skip
        """Called by Apply nodes with the query (n, 3, h, w) in 0..1; each of several examples gets a query."""
        if self.pair is None:
            raise ValueError(
                f"{self.name} should be shown an example, but has none: connect Prompt Diffusion Example between the "
                f"loader and Apply."
            )
        if cond_hint.shape[1] < QUERY:
            raise ValueError(
                f"image should have red, green and blue, but has {cond_hint.shape[1]} channels. Connect an IMAGE."
            )
        query = comfy.utils.repeat_to_batch_size(cond_hint[:, :QUERY], max(len(cond_hint), len(self.pair)))
        return super().set_cond_hint(
            query, strength, timestep_percent_range, vae=vae, extra_concat=[*extra_concat, self.pair]
        )

    def pre_run(self, model: Any, percent_to_timestep_function: Callable[[float], float]) -> None:
        """ValueError for a model of another family, whose features the host would leave as they are."""
        config = model.model_config.unet_config
        found = Widths(config.get("model_channels"), config.get("context_dim"))
        if self.widths not in (None, found):
            raise ValueError(
                f"{self.name} is made for models with {self.widths.features} channels and texts of "
                f"{self.widths.text} numbers, but {type(model).__name__} has {found.features} and {found.text}. "
                f"Connect a model of the kind that the file was trained on (SD1.5)."
            )
        super().pre_run(model, percent_to_timestep_function)

    def copy(self) -> PromptDiffusion:
        """The host's makes an ordinary ControlNet of it."""
        made = super().copy()
        made.__class__ = type(self)
        made.pair, made.name, made.widths = self.pair, self.name, self.widths
        return made


def with_example(control: PromptDiffusion, pair: Tensor, scale: Scale, drop: bool) -> PromptDiffusion:
    """A copy that is shown pictures (n, 6, h, w) in 0..1, or with `drop` none, by the zeros that were trained as such.

    Zeros stand for mid grey in -1..1.
    """
    made = control.copy()
    made.preprocess_image = scale
    made.pair = torch.zeros_like(pair) if drop else scale(pair)
    return made


def pair_of(source: Tensor, target: Tensor) -> Tensor:
    """(n, 6, h, w) from pictures (n or 1, h, w, 3); a target of another size is stretched to its source (Lanczos).

    In the run the host crops the pair about its centre to the shape of the latent, and takes the nearest pixels. So
    pictures of the latent's size and shape, times eight, lose nothing.
    """
    source, target = (image[..., :3].movedim(-1, 1).float() for image in (source, target))
    if source.shape[2:] != target.shape[2:]:
        target = comfy.utils.common_upscale(target, source.shape[3], source.shape[2], "lanczos", "disabled")
    if len(source) != len(target) and 1 not in (len(source), len(target)):
        raise ValueError(
            f"source and target should be as many pictures, or one of them a single one, but are {len(source)} and "
            f"{len(target)}. Make each example of one source and one target."
        )
    count = max(len(source), len(target))
    return torch.cat([image.expand(count, -1, -1, -1) for image in (source, target)], 1)


def checked_prompt_diffusion(found: Any) -> PromptDiffusion:
    if not isinstance(found, PromptDiffusion):
        kind = "an ordinary ControlNet" if isinstance(found, comfy.controlnet.ControlBase) else type(found).__name__
        raise ValueError(
            f"control_net should come from Load Prompt Diffusion, but is {kind}. Put that node before Prompt "
            f"Diffusion Example."
        )
    return found
