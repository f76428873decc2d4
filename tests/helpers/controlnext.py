"""Small ControlNeXt files of every layout for the tiny models, seeded."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.layers.features import channels_at
from reins.engine.unet import unet_of
from reins.models.controlnext.files import VARIANTS
from reins.models.controlnext.network import ControlNeXt as Network
from reins.models.controlnext.network import Layout, Stage
from reins.nodes.controlnext.hint import ControlNeXt
from reins.nodes.controlnext.load import family_of, make_controlnext, make_unet_weights, site_of
from reins.nodes.controlnext.nodes import ControlNeXtApply
from torch import Tensor, nn

STEM, TIME = (4, 4, 8), (8, 16)
STAGES = {
    "sd15": (Stage(3, 8, 1), Stage(8, 16, 8), Stage(16, 16, 8)),
    "svd-v1": (Stage(8, 8, 4), Stage(8, 16, 8), Stage(16, 16, 8)),
}
SHARED = (Stage(8, 8, 4), Stage(8, 16, 8))
USUAL = {"SD1.x": "sd15-training", "SDXL": "sdxl", "SVD": "svd-v2"}


def layout(variant: str, outputs: int) -> Layout:
    """Where a variant has its layers, in small, with so many output channels."""
    old = variant == "sd15"
    return Layout(() if old else STEM, STAGES.get(variant, SHARED), TIME, outputs, not old, variant == "svd-v1")


def weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Tensors for all parameters, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, like in sorted(network.state_dict().items()):
        noise = torch.randn(like.shape, generator=generator)
        if noise.ndim > 1:
            found[name] = noise / noise[0].numel() ** 0.5
        else:
            found[name] = 1.0 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return found


def file(variant: str, outputs: int, seed: int = 0, scale: float | None = None) -> dict[str, Tensor]:
    """The tensors of a control file."""
    found = weights(Network(layout(variant, outputs), comfy.ops.disable_weight_init), seed)
    return found if scale is None else {**found, "scale": torch.tensor(scale)}


def file_for(model: ModelPatcher, variant: str = "", seed: int = 0, scale: float | None = None) -> dict[str, Tensor]:
    """A control file for a model; of the variant that `auto` chooses, if none is given."""
    variant = variant or USUAL[family_of(unet_of(model), model)]
    unet = unet_of(model)
    return file(variant, channels_at(unet, site_of(unet, VARIANTS[variant].place)), seed, scale)


def unet_file(model: ModelPatcher, seed: int = 0, size: float = 0.1) -> dict[str, Tensor]:
    """Increments for the projections after the text attentions, by the host's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(value.shape, generator=generator) / max(1, value.shape[1:].numel()) ** 0.5
        for name, value in sorted(unet_of(model).named_parameters())
        if name.endswith(".attn2.to_out.0.weight")
    }


def control(
    model: ModelPatcher, variant: str = "", seed: int = 0, scale: float | None = None,
    unet: Mapping[str, Tensor] | None = None, **load: object,
) -> ControlNeXt:  # fmt: skip
    """A drawn file as the loader makes it, with a file for the UNet beside it if `unet` is given."""
    if unet is not None:
        load["unet"] = make_unet_weights(unet, "tiny unet")
    return make_controlnext(file_for(model, variant, seed, scale), "tiny control", variant or "auto", **load)


def picture(seed: int = 0, b: int = 1, h: int = 128, w: int = 128) -> Tensor:
    """Hints (b, h, w, 3); soft, for noise in every pixel averages out in the network."""
    small = torch.rand((b, 3, 5, 7), generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(small, (h, w), mode="bicubic").clamp(0, 1).movedim(1, -1)


def apply(model: ModelPatcher, seed: int = 0, image: Tensor | None = None, **settings: object) -> ModelPatcher:
    """The Apply node with a drawn file and a drawn hint."""
    made = control(model, seed=seed, unet=unet_file(model, seed))
    return ControlNeXtApply.execute(model, made, picture(seed) if image is None else image, **settings).result[0]
