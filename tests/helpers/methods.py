"""The pack's nodes as functions of a model, with settings that show an effect, for tests of every method."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unpatched import Unpatched
from reins.nodes.guidance.adaptive_projection import AdaptiveProjectedGuidance
from reins.nodes.guidance.cfg_zero import CFGZeroStar
from reins.nodes.guidance.frequency_decoupled import FrequencyDecoupledGuidance
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.guidance.interval import GuidanceInterval
from reins.nodes.guidance.normalized_attention import NormalizedAttentionGuidance
from reins.nodes.guidance.perturbed_attention import PerturbedAttentionGuidance
from reins.nodes.guidance.rescale import GuidanceRescale
from reins.nodes.guidance.self_attention import SelfAttentionGuidance
from reins.nodes.guidance.sliding_window import SlidingWindowGuidance
from reins.nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
from reins.nodes.guidance.sparse_cross_attention import SparseCrossAttention
from reins.nodes.guidance.token_perturbation import TokenPerturbationGuidance
from reins.nodes.guidance.weak_model import WeakModelGuidance
from reins.nodes.look.nodes import GuidanceScope
from reins.tests.helpers import controlnext, h_space, ip_adapter, tiny_models, unicon

MASK = torch.linspace(0, 1, 40).expand(1, 24, 40)

Method = Callable[[ModelPatcher], ModelPatcher]


def pag(
    model: ModelPatcher, scale: float = 3.0, start: float = 0.0, end: float = 1.0, layers: str = "m0",
    fade: str = "none", adaptive_scale: float = 0.1, share: bool = True, refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return PerturbedAttentionGuidance.execute(
        model, scale, start, end, layers, fade, adaptive_scale, share, refresh=refresh
    ).result[0]


def seg(
    model: ModelPatcher, scale: float = 3.0, blur_sigma: float = -1.0, start: float = 0.0, end: float = 1.0,
    layers: str = "m0", fade: str = "none", share: bool = True, refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return SmoothedEnergyGuidance.execute(model, scale, blur_sigma, start, end, layers, fade, share, refresh).result[0]


def sag(
    model: ModelPatcher, scale: float = 0.75, blur_sigma: float = 1.0, threshold: float = 1.0, start: float = 0.0,
    end: float = 1.0, kernel_size: int = 0,
) -> ModelPatcher:  # fmt: skip
    return SelfAttentionGuidance.execute(model, scale, blur_sigma, threshold, start, end, kernel_size).result[0]


def tpg(
    model: ModelPatcher, scale: float = 3.0, start: float = 0.0, end: float = 1.0, layers: str = "m0",
    share: bool = True, refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return TokenPerturbationGuidance.execute(model, scale, start, end, layers, share, refresh).result[0]


def swg(
    model: ModelPatcher, scale: float = 2.0, tile: int = 64, overlap: int = 16, start: float = 0.0, end: float = 1.0,
    refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return SlidingWindowGuidance.execute(model, scale, tile, overlap, start, end, refresh).result[0]


def nag(
    model: ModelPatcher, negative: list | None = None, scale: float = 2.0, tau: float = 2.5, alpha: float = 0.5,
    start: float = 0.0, end: float = 1.0,
) -> ModelPatcher:  # fmt: skip
    text = tiny_models.text(3) if negative is None else negative
    return NormalizedAttentionGuidance.execute(model, text, scale, tau, alpha, start, end).result[0]


def pladis(model: ModelPatcher, scale: float = 2.0, start: float = 0.0, end: float = 1.0) -> ModelPatcher:
    return SparseCrossAttention.execute(model, scale, start, end).result[0]


def weak(
    model: ModelPatcher, weak_model: ModelPatcher | None = None, scale: float = 2.0, start: float = 0.0,
    end: float = 1.0, refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return WeakModelGuidance.execute(model, weak_model or weaker(model), scale, start, end, refresh).result[0]


def weaker(model: ModelPatcher, share: float = 0.2) -> ModelPatcher:
    """The same network with a part of its weights taken away, as a patch of the host."""
    weights, names = Unpatched(model, ""), model.model.state_dict()
    keys = [key for key in names if key.endswith(("to_v.weight", "to_k.weight"))]
    weak_model = model.clone()
    weak_model.add_patches({key: (weights[key],) for key in keys}, -share)
    return weak_model


def apg(
    model: ModelPatcher, eta: float = 0.0, norm_threshold: float = 15.0, momentum: float = -0.5, start: float = 0.0,
    end: float = 1.0,
) -> ModelPatcher:  # fmt: skip
    return AdaptiveProjectedGuidance.execute(model, eta, norm_threshold, momentum, start, end).result[0]


def fdg(
    model: ModelPatcher, low: float = 1.0, high: float = 2.0, levels: int = 2, start: float = 0.0, end: float = 1.0,
) -> ModelPatcher:  # fmt: skip
    return FrequencyDecoupledGuidance.execute(model, low, high, levels, start, end).result[0]


def cfg_zero(model: ModelPatcher, zero_init_steps: int = 0, start: float = 0.0, end: float = 1.0) -> ModelPatcher:
    return CFGZeroStar.execute(model, zero_init_steps, start, end).result[0]


def image(
    model: ModelPatcher, loss: str = "low frequencies", scale: float = 0.5, start: float = 0.0, end: float = 1.0,
) -> ModelPatcher:  # fmt: skip
    latent = {"samples": 3 * tiny_models.noise(seed=9)}
    return ImageGuidance.execute(model, loss, scale, start, end, latent=latent).result[0]


def scope(model: ModelPatcher) -> ModelPatcher:
    return GuidanceScope.execute(model).result[0]


def interval(model: ModelPatcher, start: float = 0.3, end: float = 0.7) -> ModelPatcher:
    return GuidanceInterval.execute(model, start, end).result[0]


def rescale(model: ModelPatcher, rescale: float = 0.7) -> ModelPatcher:
    return GuidanceRescale.execute(model, rescale).result[0]


METHODS: dict[str, Method] = {
    "pag": pag,
    "seg": seg,
    "seg-narrow": lambda model: seg(model, blur_sigma=1.0, layers="m0,u0"),
    "sag": sag,
    "tpg": tpg,
    "swg": swg,
    "nag": nag,
    "pladis": pladis,
    "weak": weak,
    "apg": apg,
    "fdg": fdg,
    "cfg-zero": cfg_zero,
    "image": image,
    "interval": interval,
    "rescale": rescale,
    "ip-adapter": ip_adapter.apply,
    "controlnext": controlnext.apply,
    "unicon": unicon.beside,
    "h-edit": h_space.edit,
    "ip-adapter-masked": lambda model: ip_adapter.apply(model, 1, 2, weight=0.7, mask=MASK, start_percent=0.2),
}

SEEN_WHOLE = ("unicon",)  # methods that refuse prompts for areas

# Other settings of a method that stands there already: in the laws and pairs of --full alone.
SECOND = ("seg-narrow", "ip-adapter-masked")
COVERED = [name for name in METHODS if os.environ.get("REINS_FULL") or name not in SECOND]


def fit(method: Method, size: tuple[int, int]) -> Method:
    """The method for pictures of a size: a partner is a picture too."""
    return partial(method, size=size) if method is unicon.beside else method


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
    "tpg scale 0": lambda model: tpg(model, scale=0.0),
    "tpg out of range": lambda model: tpg(model, start=0.9, end=0.91),
    "swg scale 0": lambda model: swg(model, scale=0.0),
    "swg out of range": lambda model: swg(model, start=0.9, end=0.91),
    "swg of one window": lambda model: swg(model, tile=512),
    "nag scale 0": lambda model: nag(model, scale=0.0),
    "nag alpha 0": lambda model: nag(model, alpha=0.0),
    "nag out of range": lambda model: nag(model, start=0.9, end=0.91),
    "pladis scale 0": lambda model: pladis(model, scale=0.0),
    "pladis out of range": lambda model: pladis(model, start=0.9, end=0.91),
    "weak scale 0": lambda model: weak(model, scale=0.0),
    "weak out of range": lambda model: weak(model, start=0.9, end=0.91),
    "apg neutral": lambda model: apg(model, 1.0, 0.0, 0.0),
    "apg out of range": lambda model: apg(model, start=0.9, end=0.91),
    "fdg factors 1": lambda model: fdg(model, 1.0, 1.0),
    "fdg out of range": lambda model: fdg(model, start=0.9, end=0.91),
    "cfg-zero out of range": lambda model: cfg_zero(model, 1, start=0.9, end=0.91),
    "image scale 0": lambda model: image(model, scale=0.0),
    "image out of range": lambda model: image(model, start=0.9, end=0.91),
    "scope": scope,
    "rescale 0": lambda model: rescale(model, 0.0),
    "ip-adapter weight 0": lambda model: ip_adapter.apply(model, weight=0.0),
    "ip-adapter custom weights 0": lambda model: ip_adapter.apply(
        model, weight_type="custom", layer_weights="0:0, 3:0"
    ),
    "ip-adapter out of range": lambda model: ip_adapter.apply(model, start_percent=0.9, end_percent=0.91),
    "ip-adapter for other prompts": lambda model: ip_adapter.apply(model, only_for="nobody"),
    "controlnext strengths 0": lambda model: controlnext.apply(model, strength=0.0, unet_strength=0.0),
    "controlnext out of range": lambda model: controlnext.apply(
        model, unet_strength=0.0, start_percent=0.9, end_percent=0.91
    ),
    "unicon strengths 0": lambda model: unicon.apply(model, strength_x=0.0, strength_y=0.0),
    "unicon that the image does not see": lambda model: unicon.apply(model, strength_x=0.0, condition_guidance=2.0),
    "unicon out of range": lambda model: unicon.apply(model, start_percent=0.9, end_percent=0.91),
    "unicon joint strengths 0": lambda model: unicon.joint(model, strength_x=0.0, strength_y=0.0),
    "h-edit strength 0": lambda model: h_space.edit(model, strength=0.0),
    "h-edit out of range": lambda model: h_space.edit(model, start=0.9, end=0.91),
    "h-edit symmetric out of range": lambda model: h_space.edit(model, start=0.9, end=0.91, mode="symmetric"),
    "interval everywhere": lambda model: interval(model, 0.0, 1.0),
}
