"""Finds the attentions of a transformer for which an IP-Adapter file has matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import nn

from ...engine.dit.families import dit_sites, family_of, unwrapped
from ...engine.sites import Block, Site
from ...models.ip_adapter.kinds import Form
from .prompt import IPAdapter


class Fitting(NamedTuple):
    """What a form of file is for: the name of the model, families by name, and the blocks that have matrices."""

    model: str
    families: tuple[str, ...]
    blocks: tuple[Block, ...]


FITTINGS: Mapping[Form, Fitting] = {
    "sd3": Fitting("Stable Diffusion 3.5", ("SD3",), ("layer",)),
    "xlabs": Fitting("Flux", ("Flux", "Chroma"), ("double",)),
    "instantx": Fitting("Flux", ("Flux", "Chroma"), ("double", "single")),
}


def transformer_sites(adapter: IPAdapter, model: ModelPatcher) -> list[Site]:
    """Returns the attentions of a model in the order of the file, which is that of execution.

    Raises ValueError if the file is for another model, or if it cannot act in this one.
    """
    fitting = FITTINGS[adapter.kind.form]
    network: Any = unwrapped(model.get_model_object("diffusion_model"))
    family = family_of(network)
    is_flux2 = getattr(getattr(network, "params", None), "global_modulation", False)  # with Flux's class
    if family is None or family.name not in fitting.families or is_flux2:
        raise ValueError(
            f"{adapter.name} was made for {fitting.model}, but the model is {type(model.model).__name__} "
            f"({type(network).__name__}). Choose an IP-Adapter that was made for this kind of model."
        )
    sites = [site for site in dit_sites(network, "attn1") if site.block in fitting.blocks]
    has, needs = (len(sites), network.hidden_size), (len(adapter.sizes), adapter.sizes[0][0])
    if has != needs:
        raise ValueError(
            f"{adapter.name} was made for {fitting.model} with {_described(needs)}, but the model has "
            f"{_described(has)}. Choose an IP-Adapter that was made for this size of the model."
        )
    if adapter.kind.form == "sd3":
        _check_norms(adapter, network, sites)
    return sites


def path_of_sd3(site: Site) -> str:
    """Returns where the picture's queries and keys of an attention of Stable Diffusion 3 are made in the network."""
    return f"joint_blocks.{site.number}.x_block.{'attn' if site.index == 0 else 'attn2'}"


def _check_norms(adapter: IPAdapter, network: nn.Module, sites: Sequence[Site]) -> None:
    """Checks the norms of the picture's queries and keys, which the adapter replaces by those of its file.

    Layers see queries and keys behind the norms of the network. Raises ValueError if one of these cannot be undone.
    """
    for path in (f"{path_of_sd3(site)}.{name}" for site in sites for name in ("ln_q", "ln_k")):
        norm = network.get_submodule(path)
        if isinstance(norm, nn.Identity):
            continue
        if type(norm).__name__ != "RMSNorm":
            raise ValueError(
                f"{adapter.name} undoes the norms of queries and keys, which should be RMSNorm as in Stable Diffusion "
                f"3.5, but {path} is {type(norm).__name__}. Choose a model of Stable Diffusion 3.5."
            )
        if norm.weight is not None and not norm.weight.float().all():
            raise ValueError(
                f"{adapter.name} undoes the norms of queries and keys, whose weights should not be 0, but {path} has "
                f"a 0. Load the model in a wider type, or another file of it."
            )


def _described(size: Sequence[int]) -> str:
    return f"{size[0]} attentions {size[1]} wide"
