"""The chunks of a call of the network: the rows of one conditioning each.

The host lists the chunks of a batch in the options that it gives the network. The lists are read here, once for each
call. They are checked against the rows of the call, for other packs add, tile, drop and relabel rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import torch
from torch import Tensor

from ..run import STEP
from .conds import CONDS, NEGATIVE_LABEL, NEGATIVES, ChunkInfo, check_named
from .groups import GROUPS, Group
from .images import images_in_window, images_of_chunks
from .names import BATCH_ROWS, IMAGES, LABELS, UUIDS, names_in

CHUNKS = "reins_chunks"
PER_CHUNK = (UUIDS, LABELS, GROUPS, IMAGES, CHUNKS)  # keys of lists with an item for each chunk
# Keys of the lists in which packs for regional prompts (attention couple) label the chunks that they make.
REGIONAL = ("cond_or_uncond_couple", "swarm_cond_or_uncond_couple", "cond_or_uncond_hook_couple", LABELS)


class Chunk(NamedTuple):
    """The rows of one conditioning in a call of the network."""

    index: int  # of the chunk in the call
    uuid: UUID | None  # of its conditioning, or None if code without conditioning calls the network
    label: int  # number of the host's list that its conditioning is in
    is_negative: bool
    mark: UUID | None  # id of the extra prediction that it belongs to
    images: tuple[int, ...]  # for each row its index in the batch that is sampled
    info: ChunkInfo | None
    tokens: int | None  # how many its text has before it is repeated to fill a batch, or None if that is not known
    group: Group
    is_regional: bool = False  # whether another pack put rows for regional prompts into the call
    extra: int = 0  # number of its extra prediction among those of the call, from 1. 0 if it belongs to none


def chunks_of(options: Mapping[str, Any], rows: int) -> tuple[Chunk, ...]:
    """Returns the chunks of a call of the network with so many rows.

    Raises RuntimeError if the rows are not those of the chunks that the host lists.
    """
    check_named(options)
    names, step = names_in(options), options.get(STEP)
    count = len(names)
    if rows % count or _is_part(options, rows // count):
        raise RuntimeError(
            f"A call of the model should hold as many rows for each of its {count} prompts, but another pack sends "
            f"{rows} rows (tiled diffusion, rows added or dropped). Remove that pack from the model."
        )
    if any(len(options[name]) != count for name in PER_CHUNK if options.get(name)):
        raise RuntimeError(
            f"A call of the model should name the prompts of all its rows, but another pack left the names of {count}. "
            f"Remove that pack from the model."
        )
    groups = options.get(GROUPS) or [Group(i) for i in range(count)]
    images = images_of_chunks(options, count, rows // count)
    infos, negatives = options.get(CONDS, {}), options.get(NEGATIVES, (NEGATIVE_LABEL,))
    chunks, numbers = [], {None: 0}
    for i, (uuid, label) in enumerate(names):
        info, extra = infos.get(uuid), None if step is None else step.extras.get(uuid)
        mark = None if extra is None else extra.mark
        tokens = groups[i].tokens or (None if info is None else info.tokens)
        number = numbers.setdefault(mark, len(numbers))
        is_negative = label in negatives
        chunks.append(Chunk(i, uuid, label, is_negative, mark, images[i], info, tokens, groups[i], extra=number))
    return tuple(chunks)


def _is_part(options: Mapping[str, Any], rows: int) -> bool:
    """Whether a chunk has not all rows that the host gives it, nor as many tiles of each, and it is not known which."""
    batch = options.get(BATCH_ROWS)
    if batch is None or rows % batch == 0 or GROUPS in options or IMAGES in options:
        return False
    return images_in_window(options, rows) is None


class OtherPacks(NamedTuple):
    """What other packs may do to the rows of a layer without a word, and what they are, for errors."""

    may_tile: bool = False  # cut each picture into tiles
    may_add: bool = False  # add rows for regional prompts
    kinds: str = ""


def chunks_at(
    known: tuple[Chunk, ...], options: Mapping[str, Any], rows: int, is_traced: bool = False,
    others: OtherPacks = OtherPacks(),  # noqa: B008
) -> tuple[Chunk, ...]:  # fmt: skip
    """Returns the chunks of a layer with so many rows, in a call of the network whose chunks are known.

    Other packs may put chunks in another order, drop some, or add rows for regional prompts, and say so. If torch
    follows the call, no other pack acts in it.
    Raises RuntimeError if they do not say of which prompt the rows are, and `others` does not explain them.
    """
    per_chunk = len(known[0].images)
    expected = per_chunk * len(known)
    if is_traced or _are_named(known, options):
        if rows == expected:
            return known
    elif (named := _by_names(known, options, rows)) is not None:
        return named
    lists = [options.get(name) for name in REGIONAL]
    if others.may_add and len(known) == 1 and rows % per_chunk == 0:  # then all rows are for the one prompt
        lists.append([known[0].label] * (rows // per_chunk))
    labels = next((of_rows for of_rows in lists if of_rows and len(of_rows) * per_chunk == rows), None)
    regional = None if labels is None else _regional(known, labels)
    if regional is not None:
        return regional
    if others.may_tile and rows % expected == 0:
        times = rows // expected
        return tuple(chunk._replace(images=tuple(i for i in chunk.images for _ in range(times))) for chunk in known)
    raise RuntimeError(
        f"A layer should have the {expected} rows of its call, but has {rows}: another pack adds or drops rows in it"
        f"{others.kinds and f' ({others.kinds})'} and does not say of which prompt each is. Remove that pack from the "
        f"model."
    )


def _are_named(chunks: Sequence[Chunk], options: Mapping[str, Any]) -> bool:
    """Whether the host's lists name these chunks, as they do if no other pack has changed them.

    A list that another pack has taken away says nothing.
    """
    uuids, labels = options.get(UUIDS), options.get(LABELS)
    same_uuids = not uuids or uuids == [chunk.uuid for chunk in chunks]
    return same_uuids and (not labels or labels == [chunk.label for chunk in chunks])


def _by_names(known: Sequence[Chunk], options: Mapping[str, Any], rows: int) -> tuple[Chunk, ...] | None:
    """Returns the chunks that the host's lists name now. None if they name no rows of this number, or none clearly."""
    uuids, labels = options.get(UUIDS) or [], options.get(LABELS) or []
    if len(uuids) != len(labels) or len(labels) * len(known[0].images) != rows:
        return None
    by_name = {(chunk.uuid, chunk.label): chunk for chunk in known}
    names = [*zip(uuids, labels, strict=True)]
    if len(by_name) < len(known) or not {*names} <= {*by_name}:
        return None
    named = numbered([by_name[name] for name in names])
    if len(named) > len(known):
        named = tuple(chunk._replace(tokens=None, is_regional=True) for chunk in named)
    return named


def _regional(known: Sequence[Chunk], labels: Sequence[int]) -> tuple[Chunk, ...] | None:
    """Returns a chunk for each label. None if a label has no chunk, or several that differ in what they show.

    How many tokens the text of a region has is not known.
    """
    by_label: dict[int, Chunk] = {}
    for chunk in known:
        first = by_label.setdefault(chunk.label, chunk)
        if (chunk.info, chunk.images, chunk.group[1:]) != (first.info, first.images, first.group[1:]):
            return None
    if not {*labels} <= {*by_label}:
        return None
    return tuple(by_label[label]._replace(index=i, tokens=None, is_regional=True) for i, label in enumerate(labels))


def pick(rows: Tensor, numbers: Sequence[int], count: int) -> Tensor:
    """Returns the rows (numbers * b, ...) of some chunks, by number, of a tensor (count * b, ...)."""
    first, per_chunk = numbers[0], len(rows) // count
    if follow_each_other(numbers):
        return rows[first * per_chunk : (first + len(numbers)) * per_chunk]
    parts = rows.chunk(count)
    return torch.cat([parts[i] for i in numbers])


def follow_each_other(numbers: Sequence[int]) -> bool:
    """Whether these numbers of chunks are in a row, so that `pick` gives a view of their rows."""
    return len(numbers) == 1 or list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def pick_each(
    tensors: Sequence[Tensor], numbers: Sequence[Sequence[int]], count: int
) -> list[list[Tensor]]:  # fmt: skip
    """Returns for each list of numbers the rows (numbers * b, ...) of its chunks, of each tensor (count * b, ...)."""
    return [[pick(rows, of_part, count) for rows in tensors] for of_part in numbers]


def put(rows: Tensor, numbers: Sequence[int], count: int, parts: Tensor) -> Tensor:
    """Returns the tensor (count * b, ...) with some chunks, by number, replaced by `parts` (numbers * b, ...)."""
    if len(numbers) == count:
        return parts
    first, per_chunk = numbers[0], len(rows) // count
    if not follow_each_other(numbers):
        return joined(count, (range(count), rows), (numbers, parts))
    start, stop = first * per_chunk, (first + len(numbers)) * per_chunk
    before, after = ([rows[:start]] if start else []), ([rows[stop:]] if stop < len(rows) else [])
    return torch.cat([*before, parts, *after])


def add(rows: Tensor, count: int, *terms: tuple[Sequence[int], Tensor]) -> Tensor:
    """Returns the tensor (count * b, ...) with terms (numbers * b, ...) added to the chunks of their numbers."""
    parts: list[tuple[Sequence[int], Tensor]] = []  # sums that are not in `rows` yet, of different chunks
    for numbers, term in terms:
        if parts and not {*numbers}.isdisjoint(i for changed, _ in parts for i in changed):
            rows, parts = joined(count, (range(count), rows), *parts), []
        if len(numbers) == count:
            rows = rows + term
        else:
            parts.append((numbers, pick(rows, numbers, count) + term))
    return joined(count, (range(count), rows), *parts) if parts else rows


def joined(count: int, *parts: tuple[Sequence[int], Tensor]) -> Tensor:
    """Returns a tensor (count * b, ...) from the rows (numbers * b, ...) of its chunks, given with their numbers."""
    if [i for numbers, _ in parts for i in numbers] == [*range(count)]:
        return torch.cat([rows for _, rows in parts])
    chunks: dict[int, Tensor] = {}
    for numbers, rows in parts:
        chunks.update(zip(numbers, rows.chunk(len(numbers)), strict=True))
    return torch.cat([chunks[i] for i in range(count)])


def options_with(options: Mapping[str, Any], chunks: tuple[Chunk, ...]) -> dict[str, Any]:
    """Returns the options of a call that has only these chunks, which are numbered."""
    return {**options, **names_of(chunks), CHUNKS: chunks}


def names_of(chunks: Sequence[Chunk]) -> dict[str, list]:
    """Returns the host's lists of these chunks."""
    return {UUIDS: [chunk.uuid for chunk in chunks], LABELS: [chunk.label for chunk in chunks]}


def numbered(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """Returns the chunks with new numbers from 0 on, as in a call that has only these."""
    return tuple(chunk._replace(index=i) for i, chunk in enumerate(chunks))


class Part(NamedTuple):
    """Some of the chunks of a call: their numbers in it, and the same chunks numbered anew."""

    numbers: list[int]
    chunks: tuple[Chunk, ...]


class Parts(NamedTuple):
    """The chunks of a call, those on which a layer acts, and the others."""

    whole: tuple[Chunk, ...]
    acting: Part
    rest: Part


def part_of(chunks: Sequence[Chunk], numbers: Sequence[int]) -> Part:
    """Returns the part of the chunks with these numbers."""
    return Part([*numbers], numbered([chunks[i] for i in numbers]))


def parts_where(chunks: tuple[Chunk, ...], acts: Sequence[bool]) -> Parts:
    """Returns the chunks in two parts, by whether a layer acts on each."""
    acting, rest = ([i for i, does in enumerate(acts) if does is wanted] for wanted in (True, False))
    return Parts(chunks, part_of(chunks, acting), part_of(chunks, rest))


def of_chunks(value: Any, numbers: Sequence[int], count: int, rows: int) -> Any:
    """Returns the part of a value that belongs to some of `count` chunks, by number.

    The value is a tensor with `rows` rows, options, or a list of such values. Anything else is returned as it is.
    """
    if isinstance(value, Tensor):
        return value if value.ndim == 0 or len(value) != rows else pick(value, numbers, count)
    if isinstance(value, dict):
        return _options_of(value, numbers)
    return [of_chunks(item, numbers, count, rows) for item in value] if isinstance(value, list) else value


def _options_of(options: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    lists = {name: [options[name][i] for i in numbers] for name in PER_CHUNK if options.get(name)}
    if CHUNKS in lists:
        lists[CHUNKS] = numbered(lists[CHUNKS])
    return {**options, **lists}
