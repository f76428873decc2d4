"""The slots of the host's attentions, and the layers in them.

The host has one slot for each attention, which holds one function: the last one that is set. Here each method appends a
layer to the pack's list instead. In each call the layers are stacked on the function in the slot, the occupant, set
before or after ours.

Layers around a whole attention act at three places that the host offers: before the projections, in the slot, and after
the output projection. They are the last before the projections and the first after the output projection. So they see
what the model's own projections see, whatever other packs do there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..entries import Entry, Signs, entries
from ..rows.chunk import CHUNKS, Chunk, chunks_at, names_of
from ..rows.groups import GROUPS
from ..rows.names import LABELS, UUIDS
from ..run import not_told
from ..sites import AttentionKind, Site
from ..span import Span
from ..unet import attention_at
from .attention import OTHER_PACKS, SHAPE, Attend, AttentionLayer, Call, Layer, PerturbedLayers, only_on
from .call import NETWORK, NetworkCall
from .occupant import of_another_pack, text_of
from .of_host import attend_as_host, host_attention
from .projections import AroundAttention, AttentionState, Inputs, ProjectionLayer

TOLD = ("n_heads", "attn_precision", SHAPE)  # what layers need of the options that the host gives each attention
SignedLayer = tuple[Signs, Layer]
BEFORE, AFTER = "{kind}_patch", "{kind}_output_patch"


def slots_with_layers(
    options: Mapping[str, Any], in_span: Callable[[Span], bool], frames: int | None, around: AroundAttentions | None
) -> dict[str, dict] | None:
    """Returns the host's slots with the layers of this call on top of their occupants. None if no layer acts.

    The layers `around` an attention see q, k and v before the other layers do, and the result after them.
    """
    by_site = layers_by_site(options, in_span)
    chunks, network = options[CHUNKS], options[NETWORK]
    for site in around.layers if around else ():
        by_site.setdefault(site, [])
    if not by_site:
        return None
    names, told = {key: [*options[key]] for key in (UUIDS, LABELS)}, network._asdict()
    slots = {kind: dict(slots_of_kind) for kind, slots_of_kind in options.get("patches_replace", {}).items()}
    for site, layers in by_site.items():
        slots_of_kind = slots.setdefault(site.kind, {})
        # The host asks for the exact slot first, then for the slot of the whole block.
        occupant = slots_of_kind.get(site[1:], slots_of_kind.get(site[1:3]))
        is_around = around is not None and site in around.layers
        slot = AttentionSlot(site, chunks, names, network, told, frames)
        slots_of_kind[site[1:]] = _slot(slot, occupant, layers, around if is_around else None)
    return slots


def layers_by_site(options: Mapping[str, Any], in_span: Callable[[Span], bool]) -> dict[Site, list[SignedLayer]]:
    """Returns the layers that act in a call of the network, for each attention, the lowest first."""
    numbers = {chunk.mark: chunk.extra for chunk in options[CHUNKS]}
    by_site: dict[Site, list[SignedLayer]] = {}
    for entry in sorted(entries(options, Entry), key=lambda entry: -getattr(entry, "depth", 0)):  # stable
        if isinstance(entry, AttentionLayer) and in_span(entry.span):
            layer = _on_rows(entry) if GROUPS in options else entry.apply
        elif isinstance(entry, PerturbedLayers) and entry.id in numbers:
            layer = _on_marked(entry, numbers[entry.id])
        else:
            continue
        for site in entry.sites:
            by_site.setdefault(site, []).append((entry.signs, layer))
    return by_site


def _on_rows(entry: AttentionLayer) -> Layer:
    if entry.rows == "open":
        return only_on(lambda chunk: chunk.group.is_open, entry.apply)
    return only_on(lambda chunk: chunk.group.is_sampled, entry.apply)


def _on_marked(entry: PerturbedLayers, number: int) -> Layer:
    return only_on(lambda chunk: chunk.extra == number and chunk.group.is_open, entry.apply)


class AttentionSlot(NamedTuple):
    """The slot of one attention in one call of the network. `frames` says how many a video has."""

    site: Site
    chunks: tuple[Chunk, ...]
    names: Mapping[str, list]  # the host's lists of these chunks
    network: NetworkCall
    told: Mapping[str, Any]  # the same, by the names of a layer's call
    frames: int | None

    def completed(self, q: Tensor, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the options of a call by another pack with what the host tells besides, for q (rows, tokens, c).

        Raises RuntimeError if neither the options nor the number of tokens tell the layer's height and width.
        """
        if all(key in options for key in TOLD):
            return options
        attention = attention_at(self.network.module(""), self.site)
        told = {"n_heads": attention.heads, "attn_precision": attention.attn_precision}
        if SHAPE not in options:
            told[SHAPE] = [len(q), q.shape[2], *_grid_of(q.shape[1], options.get("original_shape"))]
        return {**told, **options}

    def _are_named(self, known: tuple[Chunk, ...], options: Mapping[str, Any]) -> bool:
        """Whether the host's lists name these chunks, as they do if no other pack has changed them."""
        names = self.names if known is self.chunks else names_of(known)
        return options.get(UUIDS) == names[UUIDS] and options.get(LABELS) == names[LABELS]

    def call(self, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Call:
        """Returns what layers are told of q, k and v, each (rows, tokens, heads * d).

        Raises RuntimeError if another pack has changed the rows and does not tell of which prompt each is.
        """
        h, w = options[SHAPE][-2:]
        known = options.get(CHUNKS, self.chunks)  # a layer may run on some chunks alone (shared_rows.py)
        expected = len(known) * len(known[0].images)
        # Every attention asks this, so it is asked here. What another pack may have changed is found in chunk.py.
        if len(q) != expected or not (self.network.is_traced or self._are_named(known, options)):
            is_tiled = self.site.kind == "attn1" and len(q) * q.shape[1] == expected * h * w
            others = OTHER_PACKS[self.site.kind]._replace(may_tile=is_tiled)
            known = chunks_at(known, options, len(q), others=others)
        if self.network.texts is not None and self.site.kind == "attn2":  # other packs change the texts
            known = tuple(chunk._replace(tokens=None) for chunk in known)
        return Call.told(
            q=q, k=k, v=v, site=self.site, heads=options["n_heads"], shape=(h, w), chunks=known, options=options,
            **self.told,
        )  # fmt: skip


def _slot(
    slot: AttentionSlot,
    occupant: Callable[..., Tensor] | None,
    layers: Sequence[SignedLayer],
    around: AroundAttentions | None,
) -> Callable[..., Tensor]:
    """Returns the function that the host calls for one attention in one call of the network."""
    calls = count()
    attend = host_attention if occupant is None else of_another_pack(occupant, slot.site)

    def below(call: Call) -> Tensor:
        return attend(call.q, call.k, call.v, call.options)

    chain = stacked(layers, attend_as_host if occupant is None else below)

    def replace_attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        options = slot.completed(q, options)
        if slot.frames is not None and _is_over_time(q, options, slot.frames, next(calls)):
            return attend(q, k, v, options)
        call = slot.call(q, k, v, options)
        return chain(call) if around is None else around.attend(call, chain)

    return replace_attention


def _grid_of(tokens: int, latent: Sequence[int] | None) -> tuple[int, int]:
    """Returns the height and width of the level that has so many tokens: the latent, halved as often as needed."""
    h, w = not_told(SHAPE) if latent is None else latent[-2:]
    while h * w > tokens:
        h, w = (h + 1) // 2, (w + 1) // 2
    return (h, w) if h * w == tokens else not_told(SHAPE)


def stacked(layers: Iterable[SignedLayer], below: Attend) -> Attend:
    """Returns an attention on which layers lie, the first of them lowest."""
    for signs, layer in layers:
        below = _on_top(signs, layer, below)
    return below


def _on_top(signs: Signs, layer: Layer, below: Attend) -> Attend:
    def attend(call: Call) -> Tensor:
        signs.called = True
        return layer(call, below)

    return attend


def _is_over_time(q: Tensor, options: Mapping[str, Any], frames: int, earlier_calls: int) -> bool:
    """Whether a call of a slot is a video model's attention over time. It comes after the one over space."""
    if q.shape[1] != frames:
        return False
    h, w = options[SHAPE][-2:]
    return frames != h * w or earlier_calls % 2 == 1  # the shapes alone do not tell if there are h * w frames


@dataclass
class AroundAttentions:
    """The layers around whole attentions in one call of the network."""

    layers: Mapping[Site, Sequence[AroundAttention]]
    attentions: Mapping[Site, nn.Module]
    signs: Sequence[Signs]
    states: dict[Site, AttentionState] = field(default_factory=dict)

    def attend(self, call: Call, below: Attend) -> Tensor:
        """Returns the attention below (rows, tokens, heads * d), on q, k and v as these layers changed them."""
        state = self.states.get(call.site)
        if state is None:
            raise self._lost(call.site)
        state.call = call
        for signs in self.signs:
            signs.called = True
        for layer in self.layers[call.site]:
            call = layer.project(state, call)
        state.attended = below(call)
        return state.attended

    def patches(self, options: Mapping[str, Any]) -> dict[str, list]:
        """Returns the host's lists of patches with two more of each kind: one notes inputs, one adds to outputs."""
        patches = dict(options.get("patches", {}))
        for kind in {site.kind for site in self.layers}:
            before, after = BEFORE.format(kind=kind), AFTER.format(kind=kind)
            patches[before] = [*patches.get(before, ()), self._note(kind)]
            patches[after] = [self._add(kind), *patches.get(after, ())]
        return patches

    def _lost(self, site: Site) -> RuntimeError:
        names = " and ".join(dict.fromkeys(layer.name for layer in self.layers[site]))
        return RuntimeError(
            f"Another pack took over the attention {text_of(site)} inside the call of the model, so that what {names} "
            f"does there is lost. Remove that pack from the model."
        )

    @staticmethod
    def _site(kind: AttentionKind, options: Mapping[str, Any]) -> Site:
        return Site(kind, *(options.get("block") or not_told("block")), options.get("block_index", 0))

    def _note(self, kind: AttentionKind) -> Callable[..., Inputs]:
        def note(hidden: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]) -> Inputs:
            site, inputs = self._site(kind, options), Inputs(hidden, context, value)
            if site in self.layers:
                self.states[site] = AttentionState(self.attentions[site], inputs)
            return inputs

        return note

    def _add(self, kind: AttentionKind) -> Callable[..., Tensor]:
        def add(out: Tensor, options: Mapping[str, Any]) -> Tensor:
            site = self._site(kind, options)
            state = self.states.pop(site, None)
            if state is None:
                return out
            if state.call is None:
                raise self._lost(site)
            for layer in self.layers[site]:
                out = layer.add(state, out)
            return out

        return add


def around_attentions(options: Mapping[str, Any], unet: UNetModel) -> AroundAttentions | None:
    """Returns the layers around whole attentions that act in this call. None if there are none."""
    layers: dict[Site, list[AroundAttention]] = {}
    attentions: dict[Site, nn.Module] = {}
    signs: list[Signs] = []
    for entry in entries(options, ProjectionLayer):
        if entry.around.acts(options[CHUNKS]):
            signs.append(entry.signs)
            for site, path in entry.sites.items():
                layers.setdefault(site, []).append(entry.around)
                attentions[site] = unet.get_submodule(path)
    return AroundAttentions(layers, attentions, signs) if layers else None
