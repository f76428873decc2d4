"""What is measured on a device: the host's own nodes, every method of the pack, and two stacks of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.guidance.perturbed_attention import THEMSELVES, PerturbedAttentionGuidance
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers import controlnext, ip_adapter, methods, unicon
from reins.tests.helpers.methods import apg, cfg_zero, fdg, nag, pladis, rescale, sag, scope, seg, swg, tpg
from torch import Tensor

from .cases import h_edit
from .device_networks import Network, empty, text

PIXELS = 8  # of a cell of a latent
RANK = 64  # of UniCon's release
Steer = Callable[[ModelPatcher], ModelPatcher]


class Case(NamedTuple):
    """A way of steering. Those that come first are the first to be compiled."""

    name: str
    steer: Steer


def host_node(module: str, name: str, *settings: Any) -> Steer:
    """A node of the host."""

    def steer(model: ModelPatcher) -> ModelPatcher:
        found = getattr(import_module(f"comfy_extras.{module}"), name)
        return found.execute(model, *settings).result[0]

    return steer


def host_cases(network: Network) -> Iterator[Case]:
    """The nodes of this host that act on a network. Older ones have no NAG."""
    if network.is_unet:
        yield Case("host PAG", host_node("nodes_pag", "PerturbedAttentionGuidance", 3.0))
        yield Case("host SAG", host_node("nodes_sag", "SelfAttentionGuidance", 0.5, 2.0))
    else:
        yield Case("host SLG", host_node("nodes_slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "1", "1", 0.0))
    if find_spec("comfy_extras.nodes_nag"):
        yield Case("host NAG", host_node("nodes_nag", "NAGuidance", 5.0, 0.5, 1.5))


class Drawn:
    """What methods need beside a model, drawn when it is asked for first, and in the types of the model."""

    def __init__(self, network: Network, model: ModelPatcher) -> None:
        self.network, self.model = network, model
        self.dtype = model.model.diffusion_model.dtype

    @cached_property
    def adapter(self) -> tuple[Any, Any]:
        """An IP-Adapter and tokens for it."""
        file = {key: value.to(self.dtype) for key, value in ip_adapter.file_for(self.model).items()}
        made = make_ip_adapter(file, "drawn.safetensors")
        return made, ip_adapter.tokens(made, count=16)

    @cached_property
    def hint(self) -> Tensor:
        h, w = self.network.size
        return controlnext.picture(h=PIXELS * h, w=PIXELS * w)

    @cached_property
    def negative(self) -> list:
        return text(self.network, 3)

    @cached_property
    def latent(self) -> dict[str, Tensor]:
        like = empty(self.network, self.model)
        return {"samples": 3 * torch.randn(like.shape, generator=torch.Generator().manual_seed(9))}

    def ip_adapter(self, model: ModelPatcher, **settings: Any) -> ModelPatcher:
        return IPAdapterApply.execute(model, *self.adapter, **settings).result[0]

    def image(self, model: ModelPatcher) -> ModelPatcher:
        return ImageGuidance.execute(model, "low frequencies", 0.5, 0.0, 1.0, latent=self.latent).result[0]

    def windows(self, model: ModelPatcher) -> ModelPatcher:
        """Four windows."""
        return swg(model, tile=PIXELS * self.network.size[0] // 2, overlap=0)

    def beside(self, model: ModelPatcher) -> ModelPatcher:
        """UniCon Apply."""
        return unicon.apply(
            model, weights=unicon.file_for(model, rank=RANK, size=0.1), partner=self.latent,
            positive=text(self.network, 31), negative=text(self.network, 41),
        )  # fmt: skip

    def all_kinds(self, model: ModelPatcher) -> ModelPatcher:
        """A term, a text attention, an adapter and two corrections."""
        model = self.ip_adapter(model) if self.network.is_unet else model
        return rescale(apg(nag(pag(model), self.negative)))


def pag(model: ModelPatcher, image_tokens: str = "", **settings: Any) -> ModelPatcher:
    extra = {"image_tokens": image_tokens} if image_tokens else {}
    return PerturbedAttentionGuidance.execute(model, 3.0, 0.0, 1.0, "auto", **extra, **settings).result[0]


def slg(model: ModelPatcher) -> ModelPatcher:
    return SkipLayerGuidance.execute(model, 2.8, 0.0, 1.0, "auto").result[0]


def cases_of(network: Network, model: ModelPatcher) -> Iterator[Case]:
    """All cases; the plain model is the first of them and the last, which shows how much the device wavered."""
    drawn = Drawn(network, model)
    yield Case("plain", lambda model: model)
    yield from host_cases(network)
    yield Case("PAG", pag)
    if network.is_unet:
        yield Case("IP-Adapter", drawn.ip_adapter)
    yield Case("NAG", lambda model: nag(model, drawn.negative))
    if network.is_unet:
        yield Case("stack: PAG, SEG, TPG", lambda model: tpg(seg(pag(model), layers="auto"), layers="auto"))
        yield Case("stack: IP-Adapter, PAG, NAG, APG, Rescale", drawn.all_kinds)
    else:
        yield Case("stack: PAG, SEG, SLG", lambda model: slg(seg(pag(model), layers="auto")))
        yield Case("stack: PAG, NAG, APG, Rescale", drawn.all_kinds)
    yield from _of_any(drawn)
    yield from _of_unets(network, drawn) if network.is_unet else _of_transformers(network)
    yield Case("plain, again", lambda model: model)


def _of_any(drawn: Drawn) -> Iterator[Case]:
    yield Case("PAG, unshared", lambda model: pag(model, share_layers=False))
    yield Case("PAG, refresh 2", lambda model: pag(model, refresh=2))
    yield Case("SEG", lambda model: seg(model, layers="auto"))
    yield Case("SWG, four windows", drawn.windows)
    yield Case("Weak Model", weak)
    yield Case("APG", apg)
    yield Case("FDG", fdg)
    yield Case("CFG-Zero*", cfg_zero)
    yield Case("Image Guidance", drawn.image)
    yield Case("Guidance Interval", methods.interval)
    yield Case("Guidance Rescale", rescale)
    yield Case("Guidance Scope on PAG", lambda model: scope(pag(model)))


def _of_unets(network: Network, drawn: Drawn) -> Iterator[Case]:
    yield Case("TPG", lambda model: tpg(model, layers="auto"))
    yield Case("PLADIS", pladis)
    yield Case("SAG", sag)
    yield Case("IP-Adapter with mask", lambda model: drawn.ip_adapter(model, mask=torch.ones(1, 64, 64)))
    yield Case("two IP-Adapters", lambda model: drawn.ip_adapter(drawn.ip_adapter(model)))
    yield Case("ControlNeXt", lambda model: controlnext.apply(model, image=drawn.hint))
    if network.supported == "SD15":
        yield Case("UniCon Apply", drawn.beside)
    yield Case("H-Space Edit", h_edit)


def _of_transformers(network: Network) -> Iterator[Case]:
    if network.supported == "Flux":
        yield Case("TPG", lambda model: tpg(model, layers="auto"))
    yield Case("PAG, themselves", partial(pag, image_tokens=THEMSELVES))
    yield Case("SLG", slg)


def weak(model: ModelPatcher) -> ModelPatcher:
    """The same network with a part of some weights taken away, as a patch of the host."""
    weights = model.model.state_dict()
    keys = [key for key in weights if key.endswith(("to_v.weight", "to_k.weight", "qkv.weight"))]
    weak_model = model.clone()
    weak_model.add_patches({key: (weights[key],) for key in keys}, -0.2)
    return methods.weak(model, weak_model)
