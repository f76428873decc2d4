"""Layers on the tokens between the two attentions of a transformer block.

Such a layer makes an extra prediction: it changes the tokens of the chunks of that prediction only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..entries import NetworkEntry, entries
from ..rows.chunk import CHUNKS, chunks_at, numbered, pick, put
from ..run import not_told
from ..sites import Site
from .call import NETWORK, LayerCall

PATCH = "middle_patch"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenCall(LayerCall):
    """The tokens (chunks * b, tokens, c) between the attentions of a transformer. `site` is the first of the two."""

    tokens: Tensor
    site: Site


TokenLayer = Callable[[TokenCall], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedTokens(NetworkEntry):
    """A layer that acts only on the chunks of one extra prediction, which are marked with this entry's id."""

    sites: tuple[Site, ...]
    change: TokenLayer


def token_patches(options: Mapping[str, Any]) -> dict[str, list] | None:
    """Returns the host's lists of patches with the layers of this call last. None if no layer acts."""
    known, network = options[CHUNKS], options[NETWORK]
    marks = {chunk.mark for chunk in known}
    acting = [entry for entry in entries(options, PerturbedTokens) if entry.id in marks]
    if not acting:
        return None

    seen: set[Site] = set()

    def change_tokens(tokens: Tensor, options: Mapping[str, Any]) -> Tensor:
        site = Site("attn1", *(options.get("block") or not_told("block")), options.get("block_index", 0))
        if site in seen:  # video models send the tokens of a block over time here too, after those over space
            return tokens
        seen.add(site)
        for entry in acting:
            if site in entry.sites:
                chunks = chunks_at(options.get(CHUNKS, known), options, len(tokens))
                call = TokenCall(tokens=tokens, site=site, chunks=chunks, options=options, **network._asdict())
                tokens = _changed(call, entry)
        return tokens

    patches = dict(options.get("patches", {}))
    patches[PATCH] = [*patches.get(PATCH, ()), change_tokens]
    return patches


def _changed(call: TokenCall, entry: PerturbedTokens) -> Tensor:
    total = len(call.chunks)
    marked = [chunk.index for chunk in call.chunks if chunk.mark == entry.id and chunk.group.is_open]
    if not marked:
        return call.tokens
    chunks = numbered([call.chunks[i] for i in marked])
    changed = entry.change(replace(call, tokens=pick(call.tokens, marked, total), chunks=chunks))
    return put(call.tokens, marked, total, changed)
