"""The methods of the table in docs/transformers.md, each as a node on and off for a family of tiny_transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.guidance.perturbed_attention import SEE_TEXT, THEMSELVES, PerturbedAttentionGuidance
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.nodes.ip_adapter.prompt import IPAdapter
from reins.nodes.look.nodes import GuidancePlot
from reins.tests.helpers import (
    controlnext,
    h_space,
    ip_adapter,
    methods,
    prompt_diffusion,
    tiny_models,
    tiny_transformers,
    unicon,
)
from reins.tests.helpers.tiny_transformers import latent, noise_like, sample, text
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file
from torch import Tensor

STEPS = 3
CELL = 8  # pixels


class Run(NamedTuple):
    """A model to sample, and what KSampler gets beside it."""

    model: ModelPatcher
    extra: Mapping[str, Any] = {}


def size_of(family: str) -> tuple[int, int]:
    """Rows and columns of a latent that two windows cover."""
    return (36, 40) if family == "pixart" else (8, 12)  # PixArt counts 33 at least


Node = Callable[[ModelPatcher, str], Run]


class Method(NamedTuple):
    """A node that acts, and the same node turned off. `changes` tells whether the picture differs if it acts."""

    on: Node
    off: Node
    changes: bool = True


def run(family: str, made: Run | ModelPatcher) -> Tensor:
    """A run of the host's KSampler from seeded noise."""
    model, extra = made if isinstance(made, Run) else (made, {})
    h, w = size_of(family)
    return sample(family, model, steps=STEPS, h=h, w=w, **extra)


def scaled(node: Callable[[ModelPatcher, str, float], ModelPatcher], scale: float) -> Method:
    """A node with a scale, whose 0 turns it off."""
    return Method(
        lambda model, family: Run(node(model, family, scale)), lambda model, family: Run(node(model, family, 0.0))
    )


def without_family(node: Callable[[ModelPatcher, float], ModelPatcher], scale: float) -> Method:
    """The same for a node that no family changes."""
    return scaled(lambda model, _, scale: node(model, scale), scale)


def on_and_off(on: methods.Method, off: methods.Method, changes: bool = True) -> Method:
    """Two settings of a node."""
    return Method(lambda model, _: Run(on(model)), lambda model, _: Run(off(model)), changes)


def _pag(form: str) -> Method:
    def node(model: ModelPatcher, _: str, scale: float) -> ModelPatcher:
        return PerturbedAttentionGuidance.execute(model, scale, 0.0, 1.0, "auto", image_tokens=form).result[0]

    return scaled(node, 3.0)


def _slg(model: ModelPatcher, scale: float) -> ModelPatcher:
    return SkipLayerGuidance.execute(model, scale, 0.0, 1.0, "auto").result[0]


def _nag(model: ModelPatcher, family: str, scale: float) -> ModelPatcher:
    return methods.nag(model, text(3, family=family), scale)


def _swg(model: ModelPatcher, family: str, scale: float) -> ModelPatcher:
    return methods.swg(model, scale, CELL * min(size_of(family)), CELL)


def _weak(model: ModelPatcher, scale: float) -> ModelPatcher:
    weights = model.model.state_dict()
    weak_model = model.clone()
    weak_model.add_patches({key: (weights[key],) for key in weights if weights[key].ndim == 2}, -0.1)
    return methods.weak(model, weak_model, scale)


def _image(model: ModelPatcher, family: str, scale: float) -> ModelPatcher:
    reference = {"samples": 3 * noise_like(latent(family, *size_of(family), frames=1), seed=9)}
    return ImageGuidance.execute(model, "low frequencies", scale, 0.0, 1.0, latent=reference).result[0]


def plotted(family: str, model: ModelPatcher) -> Tensor:
    """The plot (1, h, w, 3) of a run with Guidance Scope."""
    scoped = methods.scope(model)
    return GuidancePlot.execute({"samples": run(family, scoped)}, scoped).result[0]


@cache
def _of_sd15(kind: str) -> Any:
    """A file of a kind for SD1.5, as its loader makes it."""
    made = {"ip": ip_adapter.adapter, "next": controlnext.control, "unicon": unicon.unicon}
    return made[kind](tiny_models.sd15())


def _ip_adapter(model: ModelPatcher, weight: float) -> ModelPatcher:
    made: IPAdapter = _of_sd15("ip")
    return IPAdapterApply.execute(model, made, ip_adapter.tokens(made), weight).result[0]


def _of_transformer(make_file: Callable[..., Mapping[str, Tensor]], width: int) -> Method:
    """An IP-Adapter in a form for transformers, on what an encoder gave, which is `width` wide."""

    def node(model: ModelPatcher, family: str, weight: float) -> ModelPatcher:
        dual = {"layers": 5} if family == "sd35m" and "layers" in getattr(make_file, "keywords", ()) else {}
        made = make_ip_adapter(make_file(**dual), "tiny.safetensors")
        read = torch.randn(
            (1, 7, width) if made.kind.name == "timed" else (1, width), generator=torch.Generator().manual_seed(4)
        )
        (tokens,) = IPAdapterEncode.execute(made, clip_vision_output=read).result
        return IPAdapterApply.execute(model, made, tokens, weight).result[0]

    return scaled(node, 1.0)


def _controlnext(model: ModelPatcher, strength: float) -> ModelPatcher:
    return ControlNeXtApply.execute(model, _of_sd15("next"), controlnext.picture(), strength, strength).result[0]


def _unicon(model: ModelPatcher, strength: float) -> ModelPatcher:
    return unicon.apply_file(model, _of_sd15("unicon"))


def _h_space(model: ModelPatcher, strength: float) -> ModelPatcher:
    return h_space.edit(model, strength=strength)


def _prompt_diffusion(model: ModelPatcher, family: str, strength: float) -> Run:
    texts = {"positive": text(1, family=family), "negative": text(2, family=family)}
    return Run(model, prompt_diffusion.apply(**texts, strength=strength))


METHODS: Mapping[str, Method] = {
    "PAG, *see text*": _pag(SEE_TEXT),
    "PAG, *themselves*": _pag(THEMSELVES),
    "SEG": without_family(lambda model, scale: methods.seg(model, scale, layers="auto"), 3.0),
    "SLG, STG": without_family(_slg, 2.8),
    "TPG": without_family(lambda model, scale: methods.tpg(model, scale, layers="auto"), 3.0),
    "NAG": scaled(_nag, 4.0),
    "PLADIS": without_family(methods.pladis, 2.0),
    "SAG": without_family(methods.sag, 0.75),
    "SWG": scaled(_swg, 2.0),
    "Weak Model": without_family(_weak, 2.0),
    "APG": on_and_off(methods.apg, methods.OFF["apg neutral"]),
    "FDG": on_and_off(methods.fdg, methods.OFF["fdg factors 1"]),
    "CFG-Zero*": on_and_off(methods.cfg_zero, methods.OFF["cfg-zero out of range"]),
    "Guidance Interval": on_and_off(
        lambda model: methods.interval(model, 0.0, 0.2), methods.OFF["interval everywhere"]
    ),
    "Guidance Rescale": on_and_off(methods.rescale, methods.OFF["rescale 0"]),
    "Image Guidance": scaled(_image, 0.5),
    "Guidance Scope and Plot": on_and_off(methods.scope, lambda model: model, changes=False),
    "IP-Adapter for SD3.5": _of_transformer(partial(sd3_file, layers=3), 20),
    "IP-Adapter for Flux, XLabs": _of_transformer(xlabs_file, 12),
    "IP-Adapter for Flux, InstantX": _of_transformer(instantx_flux_file, 12),
    "IP-Adapter for UNets": without_family(_ip_adapter, 1.0),
    "ControlNeXt": without_family(_controlnext, 1.0),
    "UniCon": without_family(_unicon, 1.0),
    "H-Space Edit": without_family(_h_space, 0.5),
    "Prompt Diffusion": Method(
        lambda model, family: _prompt_diffusion(model, family, 1.0),
        lambda model, family: _prompt_diffusion(model, family, 0.0),
    ),
}  # fmt: skip
FAMILIES: Mapping[str, str] = {  # as the table calls them
    "SD3, SD3.5 Large": "sd3", "SD3.5 Medium": "sd35m", "Flux": "flux", "Flux2": "flux2", "Chroma": "chroma",
    "Lumina2": "lumina", "Z-Image": "zimage", "HiDream": "hidream", "AuraFlow": "aura", "Qwen-Image": "qwen",
    "Wan": "wan",
    "HunyuanVideo": "hunyuan_video", "Cosmos Predict2": "predict2", "LTX-Video": "ltxv", "PixArt": "pixart",
}  # fmt: skip


def make(family: str) -> ModelPatcher:
    """The tiny model of a family."""
    return tiny_transformers.make(family)
