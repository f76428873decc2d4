"""Finds the attentions of a model at which methods act, whatever network it has."""

from __future__ import annotations

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from .dit.families import FAMILIES, Family, dit_sites, family_of, unwrapped, why_not
from .sites import AttentionKind, Site
from .unet import find_sites


def all_sites(model: ModelPatcher, kind: AttentionKind) -> list[Site]:
    """Returns all attentions of a kind in execution order.

    Raises ValueError if the model has neither a UNet of the host nor a transformer of a known family.
    """
    network = unwrapped(model.get_model_object("diffusion_model"))
    if isinstance(network, UNetModel):
        return find_sites(model, kind)
    if family_of(network) is not None:
        return dit_sites(network, kind)
    names = ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))
    raise ValueError(
        f"This node steers a UNet (SD1.x, SD2.x, SDXL and relatives) or a diffusion transformer of these families: "
        f"{names}. The model is {type(model.model).__name__} ({type(network).__name__}), and {why_not(network)}. "
        f"Connect another model or remove the node."
    )


def dit_family(model: ModelPatcher) -> Family | None:
    """Returns the family of a model's transformer. None if its network is another."""
    return family_of(model.get_model_object("diffusion_model"))
