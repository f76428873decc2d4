"""Layers around the attentions of the host's UNet.

The host keeps one callable per attention and kind; whoever writes last wins. Here each method appends a layer to the
pack's list, and network.py stacks them at call time on whatever sits in the host's slot, set before or after ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..entries import Entry, entries
from ..rows.groups import GROUPS, Group, marked_chunks, marks_in, options_of_chunks
from ..span import WHOLE_RUN, Span
from ..unet import Site

Rows = Literal["open", "sampled"]
MODULES = "reins_modules"  # finds a part of the network by its path


@dataclass(frozen=True)
class Call:
    """q, k, v after their projections, each (chunks * b, tokens, heads * d), and the host's options."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: Mapping[str, Any]

    @property
    def chunks(self) -> Sequence[Any]:
        """The uuid of each chunk, in the order of the rows."""
        return self.options["uuids"]

    def grid(self, tokens: Tensor) -> tuple[int, int]:
        """Height and width that the tokens (q, k or v) fill; RuntimeError where another patch changed their number."""
        h, w = self.options["activations_shape"][-2:]
        if tokens.shape[1] != h * w:
            raise RuntimeError(
                f"A {h}x{w} layer should have {h * w} tokens but has {tokens.shape[1]}: another patch merges or tiles "
                f"them. Remove that patch (token merging, tiled attention) from the model."
            )
        return h, w

    def only(self, chunks: Sequence[int]) -> Call:
        """The same call for some of the chunks, by number."""
        if len(chunks) == len(self.chunks):
            return self
        options = options_of_chunks(self.options, chunks)
        shape = self.options["activations_shape"]
        options["activations_shape"] = [shape[0] // len(self.chunks) * len(chunks), *shape[1:]]
        q, k, v = (self.rows(tensor, chunks) for tensor in (self.q, self.k, self.v))
        return Call(q, k, v, options)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor of this call into its chunks."""
        return rows.chunk(len(self.chunks))

    def rows(self, tensor: Tensor, chunks: Sequence[int]) -> Tensor:
        """The rows of some chunks, by number, of a tensor of this call."""
        per_chunk, first = len(tensor) // len(self.chunks), chunks[0]
        if list(chunks) == list(range(first, first + len(chunks))):
            return tensor[first * per_chunk : (first + len(chunks)) * per_chunk]
        return torch.cat([self.split(tensor)[i] for i in chunks])


Attend = Callable[[Call], Tensor]
Layer = Callable[[Call, Attend], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionLayer(Entry):
    """A layer that acts on every chunk, those of extra predictions included.

    `rows` matters where partners take part: it acts on the branch that is open to all methods (the image), or on what
    is sampled. Layers of a greater `depth` lie below all those of a smaller one, wherever their nodes stand: what
    changes the model's own attention comes before what adds to it.
    """

    sites: tuple[Site, ...]
    apply: Layer
    span: Span = WHOLE_RUN
    rows: Rows = "open"
    depth: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedLayers(Entry):
    """Layers that act on the chunks of one extra prediction, marked with this entry's id, and on no others."""

    sites: tuple[Site, ...]
    apply: Layer


def attend(call: Call) -> Tensor:
    """The host's own attention, so that the user's choice of kernel holds."""
    options = call.options
    return optimized_attention(
        call.q, call.k, call.v, options["n_heads"],
        attn_precision=options["attn_precision"], transformer_options=options,
    )  # fmt: skip


def slots_with_layers(
    options: Mapping[str, Any],
    in_span: Callable[[Span], bool],
    frames: int | None,
    outermost: Mapping[Site, Layer],
) -> dict[str, dict] | None:
    """The host's slots with the layers of this call on top of their occupants; None where no layer acts.

    `outermost` go on top of all.
    """
    by_site = _layers_by_site(options, in_span)
    for site, layer in outermost.items():
        by_site.setdefault(site, []).append(layer)
    if not by_site:
        return None
    slots = {kind: dict(of_kind) for kind, of_kind in options.get("patches_replace", {}).items()}
    for site, layers in by_site.items():
        of_kind = slots.setdefault(site.kind, {})
        # The host asks for the exact slot first, then for the slot of the whole block.
        occupant = of_kind.get(site[1:], of_kind.get(site[1:3]))
        of_kind[site[1:]] = _slot(occupant, layers, frames)
    return slots


def _layers_by_site(options: Mapping[str, Any], in_span: Callable[[Span], bool]) -> dict[Site, list[Layer]]:
    marked = set(marks_in(options))
    by_site: dict[Site, list[Layer]] = {}
    for entry in sorted(entries(options, Entry), key=lambda entry: -getattr(entry, "depth", 0)):  # stable
        if isinstance(entry, AttentionLayer) and in_span(entry.span):
            layer = _on_rows(entry) if GROUPS in options else entry.apply
        elif isinstance(entry, PerturbedLayers) and entry.id in marked:
            layer = only_on(partial(_marked_by, entry), entry.apply)
        else:
            continue
        for site in entry.sites:
            by_site.setdefault(site, []).append(layer)
    return by_site


def _slot(occupant: Callable[..., Tensor] | None, layers: Sequence[Layer], frames: int | None) -> Callable[..., Tensor]:
    """What the host calls for one attention in this one call of the network."""
    calls = count()

    def below(call: Call) -> Tensor:
        return attend(call) if occupant is None else occupant(call.q, call.k, call.v, call.options)

    chain = below
    for layer in layers:
        chain = _stacked(layer, chain)

    def replace_attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        call = Call(q, k, v, options)
        return below(call) if _is_over_time(call, frames, next(calls)) else chain(call)

    return replace_attention


def _stacked(layer: Layer, below: Attend) -> Attend:
    return lambda call: layer(call, below)


def _is_over_time(call: Call, frames: int | None, earlier_calls: int) -> bool:
    """Video models send their attention over time through the slot of the attention over space, and after it."""
    if frames is None or call.q.shape[1] != frames:
        return False
    h, w = call.options["activations_shape"][-2:]
    return frames != h * w or earlier_calls % 2 == 1  # the shapes alone do not tell where there are h * w frames


def _marked_by(entry: PerturbedLayers, call: Call) -> list[int]:
    return marked_chunks(call.options, entry.id)


def _on_rows(entry: AttentionLayer) -> Layer:
    def ours(call: Call) -> list[int]:
        groups: Sequence[Group] = call.options[GROUPS]
        return [i for i, group in enumerate(groups) if (group.is_open if entry.rows == "open" else group.is_sampled)]

    return only_on(ours, entry.apply)


def only_on(ours: Callable[[Call], list[int]], apply: Layer) -> Layer:
    """The layer on some chunks, by number; the others see what lies below it."""

    def on_some(call: Call, below: Attend) -> Tensor:
        acting = ours(call)
        rest = [i for i in range(len(call.chunks)) if i not in acting]
        if not acting:
            return below(call)
        if not rest:
            return apply(call, below)
        kept, changed = call.only(rest), call.only(acting)
        rows: list[Tensor] = [call.q] * len(call.chunks)
        for i, chunk in zip(rest, kept.split(below(kept)), strict=True):
            rows[i] = chunk
        for i, chunk in zip(acting, changed.split(apply(changed, below)), strict=True):
            rows[i] = chunk
        return torch.cat(rows)

    return on_some


def module_in(options: Mapping[str, Any], path: str) -> nn.Module:
    """A part of the network that is being called, whose weights are those of this call."""
    return options[MODULES](path)


def with_queries(call: Call, q: Tensor) -> Call:
    """The same call with other queries."""
    return replace(call, q=q)
