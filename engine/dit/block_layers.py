"""Layers on whole blocks of a transformer, which make an extra prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..entries import NetworkEntry
from ..layers.call import LayerCall
from ..sites import Site

Streams = Mapping[Any, Tensor | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockCall(LayerCall):
    """One call of a block. `streams` are the tensors (rows, tokens, c) that the block changes, by their names.

    `picture` says which tokens of the first stream are the picture.
    """

    streams: Streams
    site: Site
    picture: slice


Block = Callable[[BlockCall], Streams]
BlockLayer = Callable[[BlockCall, Block], Streams]


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedBlocks(NetworkEntry):
    """A layer that acts only on the chunks of one extra prediction, which are marked with this entry's id.

    It acts on the blocks that the sites lie in.
    """

    sites: tuple[Site, ...]
    change: BlockLayer
