"""Layers on the attentions of a network: what a layer is given, and how a method puts it on a model.

slots.py stacks the layers of all methods at call time on whatever sits in the host's slot, set before or after ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..entries import NetworkEntry
from ..rows.chunk import (
    Chunk,
    OtherPacks,
    Part,
    Parts,
    joined,
    numbered,
    options_with,
    part_of,
    parts_where,
    pick,
    pick_each,
)
from ..sites import AttentionKind, Site
from ..span import WHOLE_RUN, Span
from .call import LayerCall

ActingRows = Literal["open", "sampled"]  # the rows that a layer acts on if partners take part
SHAPE = "activations_shape"
OTHER_PACKS: Mapping[AttentionKind, OtherPacks] = {
    "attn1": OtherPacks(kinds="reference attention, tiled attention"),
    "attn2": OtherPacks(kinds="regional prompts, attention couple", may_add=True),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(LayerCall):
    """One call of one attention: q, k, v after their projections, each (chunks * b, tokens, heads * d).

    `shape` is the height and width of the layer. The tokens fill it unless another patch changed their number.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    site: Site
    heads: int
    shape: tuple[int, int]

    def grid(self, tokens: Tensor) -> tuple[int, int]:
        """Returns the height and width that the tokens (b, h * w, c) of q, k or v fill.

        Raises RuntimeError if another patch changed their number.
        """
        h, w = self.shape
        found = tokens.shape[1]
        if found > h * w:
            raise RuntimeError(
                f"A {h}x{w} layer should have {h * w} tokens but has {found}: another patch adds tokens of other "
                f"pictures. Remove that patch (reference attention) from the model."
            )
        if found < h * w:
            raise RuntimeError(
                f"A {h}x{w} layer should have {h * w} tokens but has {found}: another patch merges or tiles "
                f"them. Remove that patch (token merging, tiled attention) from the model."
            )
        return h, w

    def check_rows(self) -> None:
        """Raises RuntimeError if queries, keys and values differ in rows, so that they cannot be split into chunks."""
        rows = self.q.shape[0], self.k.shape[0], self.v.shape[0]
        if not rows[0] == rows[1] == rows[2]:
            raise RuntimeError(
                f"An attention should have as many rows of keys and values as of queries, but has {rows[0]} of "
                f"queries, {rows[1]} of keys and {rows[2]} of values: another pack changes some of them alone "
                f"({OTHER_PACKS[self.site.kind].kinds}). Remove that pack from the model."
            )

    def only(self, numbers: Sequence[int]) -> Call:
        """Returns the same call for some of the chunks, by number."""
        return self if len(numbers) == len(self.chunks) else self.of_part(part_of(self.chunks, numbers))

    def of_part(self, part: Part) -> Call:
        """Returns the same call for a part of the chunks that is not all of them."""
        self.check_rows()
        ((q, k, v),) = pick_each((self.q, self.k, self.v), [part.numbers], len(self.chunks))
        options = options_with(self.options, part.chunks)
        options[SHAPE] = [len(q), *self.options[SHAPE][1:]]
        return self.changed(q=q, k=k, v=v, options=options, chunks=part.chunks)

    def with_keys(self, numbers: Sequence[int], k: Tensor, v: Tensor) -> Call:
        """Returns the same call for some of the chunks, by number, with the keys and values of another text.

        Both are (rows, tokens, c), with as many rows as these chunks have together.
        """
        total, tokens = len(self.chunks), k.shape[1]

        def find() -> tuple[Chunk, ...]:
            return tuple(chunk._replace(tokens=tokens) for chunk in numbered([self.chunks[i] for i in numbers]))

        chunks = self.run.once_at(self.chunks, (Call.with_keys, tuple(numbers), tokens), find)
        options = options_with(self.options, chunks)
        options[SHAPE] = [len(k), *self.options[SHAPE][1:]]
        return self.changed(q=pick(self.q, numbers, total), k=k, v=v, options=options, chunks=chunks)


Attend = Callable[[Call], Tensor]
Layer = Callable[[Call, Attend], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionLayer(NetworkEntry):
    """A layer that acts on every chunk, those of extra predictions included.

    `rows` matters if partners take part. The layer then acts on the rows that are open to all methods (those of the
    image), or on all rows that are sampled. Layers of a greater `depth` lie below all those of a smaller one, wherever
    their nodes stand. So a layer that changes the model's own attention comes before one that adds to it.
    """

    sites: tuple[Site, ...]
    apply: Layer
    span: Span = WHOLE_RUN
    rows: ActingRows = "open"
    depth: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedLayers(NetworkEntry):
    """A layer that acts only on the chunks of one extra prediction, which are marked with this entry's id."""

    sites: tuple[Site, ...]
    apply: Layer


def only_on(acts_on: Callable[[Chunk], bool], apply: Layer) -> Layer:
    """Returns the layer on the chunks that `acts_on` picks. The others get the attention below it."""
    kept: list[Parts] = []  # of the last call, for all attentions of a call of the network have the same chunks

    def parts_of(call: Call) -> Parts:
        if kept and kept[0].whole is call.chunks:
            return kept[0]
        parts = parts_where(call.chunks, [acts_on(chunk) for chunk in call.chunks])
        if not torch.compiler.is_compiling():  # what a compiled call keeps would be one thing more to check
            kept[:] = [parts]
        return parts

    def on_some(call: Call, below: Attend) -> Tensor:
        _, acting, rest = parts_of(call)
        if not acting.numbers:
            return below(call)
        if not rest.numbers:
            return apply(call, below)
        of_rest = below(call.of_part(rest))
        return joined(len(call.chunks), (rest.numbers, of_rest), (acting.numbers, apply(call.of_part(acting), below)))

    return on_some


def with_queries(call: Call, q: Tensor) -> Call:
    """Returns the same call with other queries (chunks * b, tokens, heads * d)."""
    return call.changed(q=q)
