"""Layers on the tokens between the two attentions of a transformer block, for the chunks of one extra prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..entries import Entry, entries
from ..rows.groups import marked_chunks, marks_in
from ..unet import Site

PATCH = "middle_patch"
TokenLayer = Callable[[Tensor, Site, Mapping[str, Any]], Tensor]  # on (b, tokens, c), with the host's options


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedTokens(Entry):
    """A layer that acts on the chunks of one extra prediction, marked with this entry's id, and on no others."""

    sites: tuple[Site, ...]
    change: TokenLayer


def token_patches(options: Mapping[str, Any]) -> dict[str, list] | None:
    """The host's lists of patches with the layers of this call behind them; None where no layer acts."""
    marked = marks_in(options)
    acting = [entry for entry in entries(options, PerturbedTokens) if entry.id in marked]
    if not acting:
        return None

    seen: set[Site] = set()

    def change_tokens(tokens: Tensor, options: Mapping[str, Any]) -> Tensor:
        site = Site("attn1", *options["block"], options["block_index"])
        if site in seen:  # video models send the tokens of a block over time here too, after those over space
            return tokens
        seen.add(site)
        for entry in acting:
            if site in entry.sites:
                tokens = _changed(tokens, entry, site, options)
        return tokens

    patches = dict(options.get("patches", {}))
    patches[PATCH] = [*patches.get(PATCH, ()), change_tokens]
    return patches


def _changed(tokens: Tensor, entry: PerturbedTokens, site: Site, options: Mapping[str, Any]) -> Tensor:
    parts = list(tokens.chunk(len(options["uuids"])))
    for i in marked_chunks(options, entry.id):
        parts[i] = entry.change(parts[i], site, options)
    return torch.cat(parts)
