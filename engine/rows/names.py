"""Which conditioning the rows of a call have: the host's two lists, and numbers that travel with the rows.

A pack around the model's call (model_function_wrapper) may send rows in groups of its own: tiles, one chunk at a time.
Some name what they send in the host's lists, others leave the lists and take all tensors apart alike. So a number goes
along with each row where such a pack is, and it is noted what the host's lists were.
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
NUMBERS = "reins_rows"  # for each row the number of its cond and of its image, among what the host gives the network
IMAGES = "reins_images"  # for each chunk the images of its rows
ORDER, TOLD = "reins_order", "reins_told"  # the conds by their number; the host's lists as it made them
AROUND = "model_function_wrapper"

CondLists = list[list[dict] | None]


class Name(NamedTuple):
    """A cond as the host names it to the network."""

    uuid: UUID | None
    label: int


def names_in(options: Mapping[str, Any]) -> list[Name]:
    """Returns the name of each chunk; one nameless positive if code without conditioning calls the network.

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
    """Returns conds whose rows carry numbers, and options in which the names behind the numbers are noted."""
    order: list[Name] = []
    numbered: CondLists = []
    for label, of_list in enumerate(conds):
        marked = []
        for cond in of_list or ():
            number = comfy.conds.CONDRegular(torch.tensor([[float(len(order)), float(i)] for i in range(rows)]))
            order.append(Name(cond["uuid"], label))
            marked.append({**cond, "model_conds": {**cond["model_conds"], NUMBERS: number}})
        numbered.append(None if of_list is None else marked)
    options = {**model_options.get("transformer_options", {}), ORDER: order}
    return numbered, {**model_options, AROUND: _noting(model_options[AROUND]), "transformer_options": options}


def _noting(around: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The other pack's wrapper, which is given a note of the host's lists."""

    def note(apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        options = arguments["c"]["transformer_options"]
        told = {**options, TOLD: (list(options[UUIDS]), list(options[LABELS]))}
        return around(apply, {**arguments, "c": {**arguments["c"], "transformer_options": told}})

    return note


def with_true_names(options: dict[str, Any], numbers: Tensor, rows: int) -> dict[str, Any]:
    """Returns the options of a call with the names that its rows really have; reads the numbers from the device.

    Names that another pack has changed are believed. Raises RuntimeError if neither names nor numbers fit the rows.
    """
    numbered = _by_numbers(options, numbers) if len(numbers) == rows else None
    renamed = _renamed(options)
    if renamed is not None and (numbered is None or [*zip(numbered[UUIDS], numbered[LABELS], strict=True)] != renamed):
        if rows % len(renamed) == 0:
            uuids, labels = zip(*renamed, strict=True)
            return {**options, UUIDS: list(uuids), LABELS: list(labels)}
        numbered = None
    if numbered is None:
        raise RuntimeError(
            f"Another pack around the model's call (tiled diffusion or the like) sends {rows} rows, but for "
            f"{len(numbers)} of them it is known which prompt they have: it takes apart only the tensors that it knows "
            f"by name. Remove that pack from the model."
        )
    return {**options, **numbered}


def _by_numbers(options: Mapping[str, Any], numbers: Tensor) -> dict[str, Any]:
    order: Sequence[Name] = options[ORDER]
    of_cond, images = ([int(value) for value in column] for column in numbers.T.tolist())
    per_chunk = gcd(*(len(list(same)) for _, same in groupby(of_cond)))
    starts = range(0, len(of_cond), per_chunk)
    names = [order[of_cond[start]] for start in starts]
    return {
        UUIDS: [name.uuid for name in names],
        LABELS: [name.label for name in names],
        IMAGES: [images[start : start + per_chunk] for start in starts],
    }


def _renamed(options: Mapping[str, Any]) -> list[Name] | None:
    """The names that another pack has put in the place of the host's; None if it left them.

    A pack may change the labels alone. Raises RuntimeError if several prompts have such a label.
    """
    told, uuids, labels = options.get(TOLD), options.get(UUIDS), options.get(LABELS)
    if told is None or not labels or (uuids, labels) == told:
        return None
    if labels == told[1] or (uuids and uuids != told[0]):
        return names_in(options) if uuids else None
    by_label = {label: [name for name in options[ORDER] if name.label == label] for label in labels}
    if any(len(names) != 1 for names in by_label.values()):
        raise RuntimeError(
            "Another pack around the model's call tells which of its rows are positive and which negative, but not of "
            "which prompt, and there are several. Remove that pack from the model, or use one positive and one "
            "negative prompt without areas."
        )
    return [by_label[label][0] for label in labels]
