"""Runs the blocks of a transformer for some of the chunks of a call, and puts layers on whole blocks.

A block gets tensors, tuples and records with a row for each image. What does not fit the rows of the call belongs to
all, or cannot be taken apart: then a block runs on all chunks, and only its result is taken apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.call import NETWORK
from ..rows.chunk import CHUNKS, Chunk, chunks_at, joined, numbered, of_chunks, options_with, pick, put
from ..sharing import Phase
from .block_layers import Block, BlockCall, Streams
from .families import BlockPlace
from .passage import OPTIONS, Passage

Arguments = Mapping[Any, Any]  # of a block, by place or name
Run = Callable[[Arguments], Streams]


class NotSeparable(Exception):
    """The arguments of a block cannot be narrowed to some of the chunks."""


def run_block(passage: Passage, place: BlockPlace, arguments: Arguments, run: Run) -> Streams:
    """Returns what a block makes of its streams, with the layers on it, and for each chunk only once if it is shared.

    `run` is the block as `begun` gives it, with another pack's function around it if there is one.
    """
    stack = place.stack
    if "txt" in stack.streams:
        passage.text = arguments["txt"].shape[1]
    phase = passage.phase(place)
    if phase is not None:
        try:
            few = narrowed(arguments, phase.kept, len(phase.sources), _rows(place, arguments))
        except NotSeparable:
            return _with_layers(passage, place, arguments, run)
        streams = _with_layers(passage, place, few, run)
        return {name: _repeated(value, phase) for name, value in streams.items()}
    return _with_layers(passage, place, arguments, run)


def begun(passage: Passage, place: BlockPlace, run: Run) -> Run:
    """Returns the block, which tells the passage that it runs, with the terms that layers add behind it.

    Another pack's function may run it several times, with other arguments, and change what it makes.
    """

    def begin(arguments: Arguments) -> Streams:
        passage.begin(place, arguments.get("pe"))
        try:
            streams = run(arguments)
        finally:
            terms = passage.end()
        if not terms:
            return streams
        name = place.stack.streams[0]
        picture = passage.picture.within(_tokens(place, arguments), *_text(passage, place))
        return {**streams, name: _added(streams[name], picture, terms)}

    return begin


def _added(stream: Tensor, picture: slice, terms: Sequence[Tensor]) -> Tensor:
    """Returns a stream (rows, tokens, c) with terms added to its picture. Other packs may keep the stream."""
    changed = stream[:, picture] + sum(terms)
    return torch.cat([stream[:, : picture.start], changed, stream[:, picture.stop :]], 1)


def _with_layers(passage: Passage, place: BlockPlace, arguments: Arguments, block: Run) -> Streams:
    """Returns what a block makes of its streams, with the layers on it."""
    options = arguments[OPTIONS]
    layers = passage.on_blocks.get((place.stack.letter, place.number))
    prepared = passage.prepared.get((place.stack.letter, place.number), {})
    if not layers:
        return block(arguments)
    rows = _rows(place, arguments)
    network = options[NETWORK]
    chunks = chunks_at(options.get(CHUNKS, passage.chunks), options, rows, network.is_traced)
    numbers_of: dict[int, list[int]] = {}
    for chunk in chunks:
        numbers_of.setdefault(chunk.extra, []).append(chunk.index)
    acting = [extra for extra in numbers_of if extra in layers]
    if not acting:
        return block(arguments)
    count, arguments = len(chunks), {**arguments, OPTIONS: options_with(options, chunks)}
    separable = passage.is_separable and _is_separable(arguments, chunks, rows)
    picture = passage.picture.within(_tokens(place, arguments), *_text(passage, place))
    names = place.stack.streams
    rest = [chunk.index for chunk in chunks if chunk.extra not in layers]
    parts = [(rest, _on_some(block, names, arguments, (rest, count, rows), separable)({}))] if rest else []
    for extra in acting:
        layer, numbers = layers[extra], numbers_of[extra]
        own = options_with(options, numbered([chunks[i] for i in numbers]))
        call = BlockCall(
            streams={name: of_chunks(arguments[name], numbers, count, rows) for name in names},
            site=place.site, picture=picture, prepared=prepared.get(extra), chunks=own[CHUNKS], options=own,
            **network._asdict(),
        )  # fmt: skip
        layer.signs.called = True
        below = _below(_on_some(block, names, arguments, (numbers, count, rows), separable))
        parts.append((numbers, layer.change(call, below)))
    return {name: _joined(count, [(numbers, streams[name]) for numbers, streams in parts]) for name in parts[0][1]}


def _below(block: Callable[[Streams], Streams]) -> Block:
    def below(call: BlockCall) -> Streams:
        return block(call.streams)

    return below


def _on_some(
    block: Run, names: Sequence[Any], arguments: Arguments, part: tuple[Sequence[int], int, int], can_narrow: bool
) -> Callable[[Streams], Streams]:
    """Returns the block for some of the chunks, by number, of so many chunks and rows.

    It is given changed streams, which are some of these names.
    """
    numbers, count, rows = part

    def run(streams: Streams) -> Streams:
        if len(numbers) == count:
            return block({**arguments, **streams})
        if can_narrow:
            return block({**narrowed(arguments, numbers, count, rows), **streams})
        # Blocks of Flux and LTX-Video add to their input in place, and these rows will be asked for once more.
        whole = {name: arguments[name].clone() for name in names}
        whole |= {name: put(arguments[name], numbers, count, value) for name, value in streams.items()}
        made = block({**arguments, **whole})
        return {name: None if value is None else pick(value, numbers, count) for name, value in made.items()}

    return run


def _is_separable(arguments: Arguments, chunks: Sequence[Chunk], rows: int) -> bool:
    try:
        narrowed(arguments, [0], len(chunks), rows)
    except NotSeparable:
        return False
    return True


def narrowed(arguments: Arguments, numbers: Sequence[int], count: int, rows: int) -> dict[Any, Any]:
    """Returns the arguments of a block for some of `count` chunks, by number.

    Raises NotSeparable if some have another number of rows, or hold what is not known.
    """
    return {
        name: of_chunks(value, numbers, count, rows) if name == OPTIONS else _narrowed(value, numbers, count, rows)
        for name, value in arguments.items()
    }


def _narrowed(value: Any, numbers: Sequence[int], count: int, rows: int) -> Any:
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) == 1:
            return value
        if len(value) != rows:
            raise NotSeparable
        return pick(value, numbers, count)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_narrowed(item, numbers, count, rows) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: _narrowed(item, numbers, count, rows) for name, item in fields.items()}
        )
    raise NotSeparable


def _rows(place: BlockPlace, arguments: Arguments) -> int:
    return len(arguments[place.stack.streams[0]])


def _tokens(place: BlockPlace, arguments: Arguments) -> int:
    return arguments[place.stack.streams[0]].flatten(1, -2).shape[1]


def _text(passage: Passage, place: BlockPlace) -> tuple[int, bool]:
    """Returns how many tokens of text the first stream of a block has, and whether they come first."""
    is_joined = place.stack.block in ("single", "layer") and "txt" not in place.stack.streams
    text = passage.text if is_joined and passage.family.text == "first" else 0
    return text, passage.family.text == "first"


def _repeated(value: Tensor | None, phase: Phase) -> Tensor | None:
    if value is None:
        return None
    parts = value.chunk(len(phase.kept))
    return torch.cat([parts[i] for i in phase.sources])  # a copy, for the host adds residuals in place


def _joined(count: int, parts: Sequence[tuple[Sequence[int], Tensor | None]]) -> Tensor | None:
    """Returns the chunks of a stream in their order. None if the last block of a network gives up its text."""
    return None if any(value is None for _, value in parts) else joined(count, *parts)
