"""What the rows of a call are, where partners take part in it (branches.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

import torch
from torch import Tensor

from ..run import STEP, Step
from .conds import IMAGES

GROUPS = "reins_groups"
TOKENS = "reins_tokens"
PER_CHUNK = ("uuids", "cond_or_uncond", GROUPS, IMAGES, TOKENS)  # lists of the options with an item for each chunk
Branch = Literal["image", "condition"]


class Group(NamedTuple):
    """The rows of one branch of one chunk; such a group stands in the call where a chunk of the host stood."""

    chunk: int  # of the host's call
    branch: Branch
    owner: UUID | None  # the partner whose condition these rows are
    is_sampled: bool
    is_paired: bool = True  # whether a condition and its image see each other in this prediction
    is_open: bool = True  # whether other methods act on these rows


def options_of_chunks(options: Mapping[str, Any], chunks: Sequence[int]) -> dict[str, Any]:
    """The options of a call that has only some of the chunks, by number."""
    lists = {name: [of_all[i] for i in chunks] for name in PER_CHUNK if (of_all := options.get(name))}
    return {**options, **lists}


def marks_in(options: Mapping[str, Any]) -> list[UUID | None]:
    """Of each chunk of a call the extra prediction that it belongs to; None for the host's own."""
    step: Step | None = options.get(STEP)
    return [None if step is None else step.marks.get(chunk) for chunk in options.get("uuids", ())]


def marked_chunks(options: Mapping[str, Any], extra: UUID) -> list[int]:
    """The chunks of an extra prediction, by number, but for rows that are not open to other methods."""
    groups: Sequence[Group] | None = options.get(GROUPS)
    marks = marks_in(options)
    return [i for i, mark in enumerate(marks) if mark == extra and (groups is None or groups[i].is_open)]


def of_chunks(value: Any, kept: Sequence[int], count: int, rows: int) -> Any:
    """What some of `count` chunks have, by number, of a tensor with `rows` rows, of a list of such, or of options."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != rows:
            return value
        if list(kept) == list(range(len(kept))):
            return value[: len(kept) * (rows // count)]
        parts = value.chunk(count)
        return torch.cat([parts[i] for i in kept])
    if isinstance(value, dict):
        return options_of_chunks(value, kept)
    return [of_chunks(item, kept, count, rows) for item in value] if isinstance(value, list) else value
