"""Layers around a whole attention, its projections included: what enters it, q, k and v, and what leaves it.

Such a layer may change q, k and v of some rows and add to the output (slots.py puts it where it belongs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..entries import Entry
from ..rows.chunk import Chunk
from ..unet import Site
from .attention import Call


class Inputs(NamedTuple):
    """What the projections of an attention get: for q, for k and for v, each (rows, tokens, c)."""

    hidden: Tensor
    context: Tensor
    value: Tensor


@dataclass
class AttentionState:
    """One attention in one call of the network, as far as it has come."""

    attention: nn.Module  # the host's, with its projections
    inputs: Inputs
    call: Call | None = None  # q, k and v by the model's own projections
    attended: Tensor | None = None  # what enters the output projection


class AroundAttention(Protocol):
    """What a method does around its attentions, their projections included."""

    name: str  # for errors

    def acts(self, chunks: Sequence[Chunk]) -> bool:
        """Whether it does anything in a call of the network with these chunks."""

    def project(self, state: AttentionState, call: Call) -> Call:
        """Returns the call with q, k and v changed; `call` has the changes of other methods, `state.call` has none."""

    def add(self, state: AttentionState, out: Tensor) -> Tensor:
        """Returns what leaves the output projection (rows, tokens, c), with the method's terms added."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectionLayer(Entry):
    """A method, and its attentions with their paths in the network."""

    sites: Mapping[Site, str]
    around: AroundAttention
