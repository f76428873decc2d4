"""Layers on the tokens between the two attentions of a transformer block.

Such a layer makes an extra prediction: it changes the tokens of the chunks of that prediction only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..entries import NetworkEntry, entries
from ..rows.chunk import CHUNKS, chunks_at, numbered, pick, put
from ..run import Run, not_told, run_in, sigma_in
from ..sites import Site
from ..unet import grid_at
from .call import NETWORK, LayerCall

PATCH = "middle_patch"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenCall(LayerCall):
    """The tokens (chunks * b, tokens, c) between the attentions of a transformer. `site` is the first of the two.

    `prepared` is what the layer asked to be made before the network was called.
    """

    tokens: Tensor
    site: Site
    prepared: Tensor | None = None


TokenLayer = Callable[[TokenCall], Tensor]
Prepare = Callable[[Run, float, Site, int, torch.device], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedTokens(NetworkEntry):
    """A layer that acts only on the chunks of one extra prediction, which are marked with this entry's id.

    If it has `prepare`, that is called before the network in each step, with the site and the number of tokens there.
    So torch.compile can follow a layer that draws numbers.
    """

    sites: tuple[Site, ...]
    change: TokenLayer
    prepare: Prepare | None = None
    is_traceable: bool = True


def token_patches(options: Mapping[str, Any], unet: UNetModel, x: Tensor) -> dict[str, list] | None:
    """Returns the host's lists of patches with the layers of this call last. None if no layer acts.

    x (rows, c, h, w) is what the network is given.
    """
    known, network = options[CHUNKS], options[NETWORK]
    numbers = {chunk.mark: chunk.extra for chunk in known}
    acting = [entry for entry in entries(options, PerturbedTokens) if entry.id in numbers]
    if not acting:
        return None

    prepared = {entry.id: _prepared(entry, options, unet, x) for entry in acting}
    acting = [(entry, numbers[entry.id], prepared[entry.id]) for entry in acting]
    seen: set[Site] = set()

    def change_tokens(tokens: Tensor, options: Mapping[str, Any]) -> Tensor:
        site = Site("attn1", *(options.get("block") or not_told("block")), options.get("block_index", 0))
        if site in seen:  # video models send the tokens of a block over time here too, after those over space
            return tokens
        seen.add(site)
        for entry, number, made in acting:
            if site in entry.sites:
                chunks = chunks_at(options.get(CHUNKS, known), options, len(tokens), network.is_traced)
                call = TokenCall(
                    tokens=tokens, site=site, chunks=chunks, options=options, prepared=made.get(tuple(site)),
                    **network._asdict(),
                )  # fmt: skip
                tokens = _changed(call, entry.change, number)
        return tokens

    patches = dict(options.get("patches", {}))
    patches[PATCH] = [*patches.get(PATCH, ()), change_tokens]
    return patches


def _prepared(
    entry: PerturbedTokens, options: Mapping[str, Any], unet: UNetModel, x: Tensor
) -> dict[tuple, Tensor]:  # fmt: skip
    """Returns what a layer asks for at each of its sites in this step."""
    if entry.prepare is None:
        return {}
    run, sigma = run_in(options), sigma_in(options)
    return {
        tuple(site): entry.prepare(run, sigma, site, prod(grid_at(unet, site, x.shape[-2:])), x.device)
        for site in entry.sites
    }  # fmt: skip


def _changed(call: TokenCall, change: TokenLayer, number: int) -> Tensor:
    """Returns the tokens with those of an extra prediction changed. The `number` is that of the prediction."""
    total = len(call.chunks)
    marked = [chunk.index for chunk in call.chunks if chunk.extra == number and chunk.group.is_open]
    if not marked:
        return call.tokens
    chunks = numbered([call.chunks[i] for i in marked])
    changed = change(call.changed(tokens=pick(call.tokens, marked, total), chunks=chunks))
    return put(call.tokens, marked, total, changed)
