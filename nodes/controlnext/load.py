"""Makes a ControlNeXt of files, and finds its place in a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.layers.features import FeatureSite, channels_at
from ...engine.loading import check_finite, load_network
from ...engine.unet import family_of, unet_of
from ...engine.unet_weights import Mode, UNetWeights
from ...models.controlnext import network as networks
from ...models.controlnext.files import VARIANTS, FeaturePlace, Variant, control_part, unet_part
from .hint import ControlNeXt

logger = logging.getLogger(__name__)
REASON = "The hint enters between the blocks of a UNet, and all ControlNeXt files were trained for one."


def make_controlnext(
    weights: Mapping[str, Tensor], name: str, variant: str = "auto", stem_padding: int | None = None,
    unet: UNetWeights | None = None,
) -> ControlNeXt:  # fmt: skip
    """Returns a control network whose weights belong to the host.

    Raises ValueError if the file is no ControlNeXt or not of the variant.
    """
    parts = control_part(weights, name)
    if variant != "auto" and variant not in parts.variants:
        raise ValueError(
            f"{name} should be a file of {variant}, but its tensors are those of {' or '.join(parts.variants)}. Set "
            f"variant to auto or choose another file."
        )
    return ControlNeXt(
        name=name,
        layout=parts.layout,
        scale=parts.scale,
        variants=parts.variants if variant == "auto" else (variant,),
        stem_padding=stem_padding,
        network=load_network(partial(networks.ControlNeXt, parts.layout), parts.weights, name),
        unet=unet,
    )


def make_unet_weights(weights: Mapping[str, Tensor], name: str, mode: Mode = "auto") -> UNetWeights:
    """Returns the UNet's part of a file. Raises ValueError if it has none, or holds numbers that are not finite."""
    tensors = unet_part(weights, name)
    check_finite(tensors, name)
    return UNetWeights(name, tensors, mode)


def match_controlnext(control: ControlNeXt, model: ModelPatcher) -> tuple[Variant, FeatureSite]:
    """Returns how a file acts on a model, and where. Raises ValueError if it is for another kind of model."""
    unet = unet_of(model, REASON)
    family = family_of(unet, model)
    fitting = [name for name in control.variants if VARIANTS[name].family == family]
    if not fitting:
        wanted = ", ".join(f"{VARIANTS[name].family} ({name})" for name in control.variants)
        raise ValueError(
            f"{control.name} is a ControlNeXt for {wanted}, but the model is {family} ({type(model.model).__name__}). "
            f"Connect a model of that kind or load another file."
        )
    variant = VARIANTS[fitting[0]]
    site = site_of(unet, variant.place)
    channels = channels_at(unet, site)
    if channels != control.layout.outputs:
        raise ValueError(
            f"{control.name} makes {control.layout.outputs} channels, but {type(model.model).__name__} has {channels} "
            f"where {fitting[0]} adds them. Connect a model of the kind that the file was trained on."
        )
    logger.info("%s acts as %s on %s, at %s %d", control.name, fitting[0], type(model.model).__name__, *site)
    return variant, site


def site_of(unet: UNetModel, place: FeaturePlace) -> FeatureSite:
    """Returns where a variant adds its feature, by the kind of block, because shortened UNets number them otherwise.

    Raises ValueError if the UNet has a single resolution.
    """
    if place == "middle":
        return FeatureSite("output", 0)
    if place == "deepest":
        return FeatureSite("input", len(unet.input_blocks) - 1)
    if place == "first":
        return FeatureSite("input", 0)
    for number, block in enumerate(unet.input_blocks):
        if any(isinstance(layer, Downsample) for layer in block):
            return FeatureSite("input", number)
    raise ValueError("The model should be a UNet that halves its features, but it has one resolution. Connect another.")
