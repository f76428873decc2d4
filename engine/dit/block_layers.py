"""Layers on whole blocks of a transformer, which make an extra prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..entries import NetworkEntry
from ..layers.call import LayerCall
from ..layers.tokens import Prepare
from ..sites import Site

Streams = Mapping[Any, Tensor | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockCall(LayerCall):
    """One call of a block. `streams` are the tensors (rows, tokens, c) that the block changes, by their names.

    `picture` says which tokens of the first stream are the picture. `prepared` is what the layer asked to be made
    before the network was called.
    """

    streams: Streams
    site: Site
    picture: slice
    prepared: Tensor | None = None


Block = Callable[[BlockCall], Streams]
BlockLayer = Callable[[BlockCall, Block], Streams]


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedBlocks(NetworkEntry):
    """A layer that acts only on the chunks of one extra prediction, which are marked with this entry's id.

    It acts on the blocks that the sites lie in. If it has `prepare`, that is called before the network in each step,
    with the site of a block and the number of tokens of the picture.
    """

    sites: tuple[Site, ...]
    change: BlockLayer
    prepare: Prepare | None = None
    is_traceable: bool = True
