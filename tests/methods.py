"""The pack's nodes as functions of a model, with settings that show an effect, for tests of every method."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.interval import GuidanceInterval
from reins.nodes.perturbed_attention import PerturbedAttentionGuidance
from reins.nodes.rescale import GuidanceRescale
from reins.nodes.self_attention import SelfAttentionGuidance
from reins.nodes.smoothed_energy import SmoothedEnergyGuidance
from reins.tests import cn, hs, ip, uc

MASK = torch.linspace(0, 1, 40).expand(1, 24, 40)

Method = Callable[[ModelPatcher], ModelPatcher]


def pag(model, scale=3.0, start=0.0, end=1.0, layers="m0", fade="none", adaptive_scale=0.1):
    return PerturbedAttentionGuidance.execute(model, scale, start, end, layers, fade, adaptive_scale).result[0]


def seg(model, scale=3.0, blur_sigma=-1.0, start=0.0, end=1.0, layers="m0", fade="none"):
    return SmoothedEnergyGuidance.execute(model, scale, blur_sigma, start, end, layers, fade).result[0]


def sag(model, scale=0.75, blur_sigma=1.0, threshold=1.0, start=0.0, end=1.0, kernel_size=0):
    return SelfAttentionGuidance.execute(model, scale, blur_sigma, threshold, start, end, kernel_size).result[0]


def interval(model, start=0.3, end=0.7):
    return GuidanceInterval.execute(model, start, end).result[0]


def rescale(model, rescale=0.7):
    return GuidanceRescale.execute(model, rescale).result[0]


METHODS: dict[str, Method] = {
    "pag": pag,
    "seg": seg,
    "seg-narrow": lambda model: seg(model, blur_sigma=1.0, layers="m0,u0"),
    "sag": sag,
    "interval": interval,
    "rescale": rescale,
    "ip-adapter": ip.apply,
    "controlnext": cn.apply,
    "unicon": uc.beside,
    "h-edit": hs.edit,
    "ip-adapter-masked": lambda model: ip.apply(model, 1, 2, weight=0.7, mask=MASK, start_percent=0.2),
}

SEEN_WHOLE = ("unicon",)  # methods that refuse prompts for areas

# Other settings of a method that stands there already: in the laws and pairs of --full alone.
SECOND = ("seg-narrow", "ip-adapter-masked")
COVERED = [name for name in METHODS if os.environ.get("REINS_FULL") or name not in SECOND]


def fit(method: Method, size: tuple[int, int]) -> Method:
    """The method for pictures of a size: a partner is a picture too."""
    return partial(method, size=size) if method is uc.beside else method


OFF: dict[str, Method] = {
    "pag scale 0": lambda model: pag(model, scale=0.0),
    "pag out of range": lambda model: pag(model, start=0.9, end=0.91),
    "pag empty range": lambda model: pag(model, start=0.6, end=0.4),
    "pag faded out": lambda model: pag(model, fade="adaptive (peer)", adaptive_scale=1.0, start=0.01),
    "seg scale 0": lambda model: seg(model, scale=0.0),
    "seg blur 0": lambda model: seg(model, blur_sigma=0.0),
    "seg out of range": lambda model: seg(model, start=0.9, end=0.91),
    "sag scale 0": lambda model: sag(model, scale=0.0),
    "sag blur 0": lambda model: sag(model, blur_sigma=0.0),
    "sag blur of a cell": lambda model: sag(model, blur_sigma=0.1),
    "sag out of range": lambda model: sag(model, start=0.9, end=0.91),
    "rescale 0": lambda model: rescale(model, 0.0),
    "ip-adapter weight 0": lambda model: ip.apply(model, weight=0.0),
    "ip-adapter custom weights 0": lambda model: ip.apply(model, weight_type="custom", layer_weights="0:0, 3:0"),
    "ip-adapter out of range": lambda model: ip.apply(model, start_percent=0.9, end_percent=0.91),
    "ip-adapter for other prompts": lambda model: ip.apply(model, only_for="nobody"),
    "controlnext strengths 0": lambda model: cn.apply(model, strength=0.0, unet_strength=0.0),
    "controlnext out of range": lambda model: cn.apply(model, unet_strength=0.0, start_percent=0.9, end_percent=0.91),
    "unicon strengths 0": lambda model: uc.apply(model, strength_x=0.0, strength_y=0.0),
    "unicon that the image does not see": lambda model: uc.apply(model, strength_x=0.0, condition_guidance=2.0),
    "unicon out of range": lambda model: uc.apply(model, start_percent=0.9, end_percent=0.91),
    "unicon joint strengths 0": lambda model: uc.joint(model, strength_x=0.0, strength_y=0.0),
    "h-edit strength 0": lambda model: hs.edit(model, strength=0.0),
    "h-edit out of range": lambda model: hs.edit(model, start=0.9, end=0.91),
    "h-edit symmetric out of range": lambda model: hs.edit(model, start=0.9, end=0.91, mode="symmetric"),
    "interval everywhere": lambda model: interval(model, 0.0, 1.0),
}
