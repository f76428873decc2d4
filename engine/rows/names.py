"""Which conditioning the rows of a call have: the host's two lists, and numbers that travel with the rows.

A pack around the model's call (model_function_wrapper) may send the rows in other groups: tiles, or single chunks.
Some of these packs change the host's lists to fit what they send. Others leave the lists and split all tensors alike.
So if there is such a pack, each row carries a number, and the host's lists are noted before the pack sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import gcd
from typing import Any, NamedTuple
from uuid import UUID

import comfy.conds
import torch
from torch import Tensor

UUIDS, LABELS = "uuids", "cond_or_uncond"  # the host's lists, with an item for each chunk
NUMBERS = "reins_rows"  # for each row the number of its cond, among all conds, and the index of its image
IMAGES = "reins_images"  # for each chunk the images of its rows
NAMES_BY_NUMBER = "reins_order"  # the names of the conds by number
BATCH_ROWS = "reins_batch_rows"  # how many rows each chunk of the host has
HOST_LISTS = "reins_host_lists"  # the host's two lists as it made them
AROUND = "model_function_wrapper"

CondLists = list[list[dict] | None]


class Name(NamedTuple):
    """A cond as the host names it to the network."""

    uuid: UUID | None
    label: int


def names_in(options: Mapping[str, Any]) -> list[Name]:
    """Returns the name of each chunk. If code without conditioning calls the network, it is a positive without uuid.

    Raises RuntimeError if the host's two lists differ in length.
    """
    uuids, labels = options.get(UUIDS), options.get(LABELS)
    if not uuids or not labels:
        count = len(uuids or labels or [None])
        uuids, labels = uuids or [None] * count, labels or [0] * count
    if len(uuids) != len(labels):
        raise RuntimeError(
            f"A call of the model should have one label for each prompt, but another pack left {len(labels)} labels "
            f"for {len(uuids)} prompts. Remove that pack from the model."
        )
    return [Name(uuid, label) for uuid, label in zip(uuids, labels, strict=True)]


def with_numbers(conds: CondLists, rows: int, model_options: Mapping[str, Any]) -> tuple[CondLists, dict[str, Any]]:
    """Returns conds whose rows carry numbers, and model options with the names that belong to the numbers."""
    order: list[Name] = []
    numbered: CondLists = []
    for label, of_list in enumerate(conds):
        marked = []
        for cond in of_list or ():
            number = comfy.conds.CONDRegular(torch.tensor([[float(len(order)), float(i)] for i in range(rows)]))
            order.append(Name(cond["uuid"], label))
            marked.append({**cond, "model_conds": {**cond["model_conds"], NUMBERS: number}})
        numbered.append(None if of_list is None else marked)
    options = {**model_options.get("transformer_options", {}), NAMES_BY_NUMBER: order}
    return numbered, {**model_options, AROUND: _noting(model_options[AROUND]), "transformer_options": options}


def _noting(around: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the other pack's wrapper with a note of the host's lists in the options that it passes on."""

    def note(apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        options = arguments["c"]["transformer_options"]
        noted = {**options, HOST_LISTS: (list(options[UUIDS]), list(options[LABELS]))}
        return around(apply, {**arguments, "c": {**arguments["c"], "transformer_options": noted}})

    return note


def with_true_names(options: dict[str, Any], numbers: Tensor | None, rows: int) -> dict[str, Any]:
    """Returns the options of a call with the names that its rows really have, by their numbers (rows, 2).

    The numbers are read from the device. If another pack changed the names, its names count.
    Raises RuntimeError if neither names nor numbers fit the rows.
    """
    if NAMES_BY_NUMBER not in options:
        if numbers is None:  # no other pack is around the call
            return options
        raise RuntimeError(
            "Another pack around the model's call (tiled diffusion or the like) drops what it does not know from the "
            "options, so that nothing is left of our nodes. Remove that pack from the model."
        )
    if numbers is None:  # dropped with all that the pack does not know by name
        of_host = options.get(HOST_LISTS)
        if of_host is None or rows == len(of_host[0]) * options[BATCH_ROWS]:
            return options
    count = 0 if numbers is None else len(numbers)
    numbered = _by_numbers(options, numbers) if count == rows else None
    if numbered is None or not _agrees(numbered, options):
        numbered = _renamed(options, rows) or numbered
    if numbered is None:
        raise RuntimeError(
            f"Another pack around the model's call (tiled diffusion or the like) sends {rows} rows, but for "
            f"{count} of them it is known which prompt they have: it takes apart only the tensors that it knows "
            f"by name. Remove that pack from the model."
        )
    return {**options, UUIDS: numbered.uuids, LABELS: numbered.labels, IMAGES: numbered.images}


class Named(NamedTuple):
    """The chunks of a call: their names, and for each the images of its rows."""

    uuids: list[UUID | None]
    labels: list[int]
    images: list[list[int]]


def _agrees(numbered: Named, options: Mapping[str, Any]) -> bool:
    """Whether lists that another pack has changed name the rows as their numbers do."""
    of_host, uuids, labels = options.get(HOST_LISTS), options.get(UUIDS), options.get(LABELS)
    if of_host is None or (uuids, labels) == of_host:
        return True
    same_uuids = not uuids or uuids == of_host[0] or uuids == numbered.uuids
    return same_uuids and (not labels or labels == numbered.labels)


def _by_numbers(options: Mapping[str, Any], numbers: Tensor) -> Named:
    """Returns the chunks by the numbers (rows, 2) of cond and image.

    A chunk has as many rows as fit into each run of rows with the same cond, so that all chunks have equally many.
    """
    order: Sequence[Name] = options[NAMES_BY_NUMBER]
    of_cond, images = ([int(value) for value in column] for column in numbers.T.tolist())
    per_chunk = gcd(*(len(list(same)) for _, same in groupby(of_cond)))
    starts = range(0, len(of_cond), per_chunk)
    names = [order[of_cond[start]] for start in starts]
    images_of = [images[start : start + per_chunk] for start in starts]
    return Named([name.uuid for name in names], [name.label for name in names], images_of)


def _renamed(options: Mapping[str, Any], rows: int) -> Named | None:
    """Returns the chunks by the names that another pack has put in the place of the host's.

    None if it left them, or if it is not clear which images the rows are.
    """
    names = _new_names(options)
    batch = options[BATCH_ROWS]
    if names is None or rows % len(names):
        return None
    per_chunk = rows // len(names)
    if batch != 1 and per_chunk != batch:
        return None
    images = list(range(batch)) if per_chunk == batch else [0] * per_chunk
    return Named([name.uuid for name in names], [name.label for name in names], [images] * len(names))


def _new_names(options: Mapping[str, Any]) -> list[Name] | None:
    """Returns the names that another pack has put in the place of the host's, or None if it left them.

    Raises RuntimeError if the pack changed the labels alone and several prompts have such a label.
    """
    of_host, uuids, labels = options.get(HOST_LISTS), options.get(UUIDS), options.get(LABELS)
    if of_host is None or not labels or (uuids, labels) == of_host:
        return None
    if labels == of_host[1] or (uuids and uuids != of_host[0]):
        return names_in(options) if uuids else None
    by_label = {label: [name for name in options[NAMES_BY_NUMBER] if name.label == label] for label in labels}
    if any(len(names) != 1 for names in by_label.values()):
        raise RuntimeError(
            "Another pack around the model's call tells which of its rows are positive and which negative, but not of "
            "which prompt, and there are several. Remove that pack from the model, or use one positive and one "
            "negative prompt without areas."
        )
    return [by_label[label][0] for label in labels]
