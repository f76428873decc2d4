"""Layers around a whole attention, its projections included.

Such a layer sees what enters the projections, q, k and v, and what leaves the output projection. It may change q, k and
v of some rows and add to the output. slots.py puts it into the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..entries import NetworkEntry
from ..rows.chunk import Chunk
from ..sites import Site
from .attention import Call


class Inputs(NamedTuple):
    """The inputs of the projections of an attention, for q, k and v: each (rows, tokens, c)."""

    hidden: Tensor
    context: Tensor
    value: Tensor


@dataclass
class AttentionState:
    """What has been computed so far of one attention in one call of the network."""

    attention: nn.Module  # of the host, with its projections
    inputs: Inputs
    call: Call | None = None  # q, k and v by the model's own projections
    attended: Tensor | None = None  # the input of the output projection (rows, tokens, heads * d)


class AroundAttention(Protocol):
    """What a method does around whole attentions."""

    name: str  # for errors

    def acts(self, chunks: Sequence[Chunk]) -> bool:
        """Whether it changes anything in a call of the network with these chunks."""

    def project(self, state: AttentionState, call: Call) -> Call:
        """Returns the call with q, k and v changed.

        `call` has the changes of the methods before this one, and `state.call` has none.
        """

    def add(self, state: AttentionState, out: Tensor) -> Tensor:
        """Returns the output (rows, tokens, c) of the output projection with the method's terms added."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectionLayer(NetworkEntry):
    """An entry: what a method does around attentions, and their paths in the network."""

    sites: Mapping[Site, str]
    around: AroundAttention
