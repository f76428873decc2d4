"""What the conditioning behind each chunk says of it: its area of the picture, and the names it was given.

The host tells the network which chunks a batch has. Packs that send rows in groups of their own (tiled diffusion, one
chunk at a time) keep that list although it no longer fits. Where such a pack is, a number travels with each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import gcd
from typing import Any, NamedTuple
from uuid import UUID

import comfy.conds
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..entries import install_wrapper
from ..run import Run, run_in

CONDS, ORDER, NEGATIVES = "reins_conds", "reins_order", "reins_negatives"
ROWS, IMAGES = "reins_rows", "reins_images"  # for each row the number of its cond and of its image
NEGATIVE_LABEL = 1  # of the host's own guider; others number their conds as they like
NEGATIVE_NAMES = ("negative", "empty_negative_prompt")
NAMES = "reins_names"  # on a conditioning: which entries with `only_for` act on it


class Area(NamedTuple):
    """A part of the latent, in cells."""

    h: int
    w: int
    top: int
    left: int


class ChunkInfo(NamedTuple):
    """`area` is None for the whole picture, whose size is (h, w)."""

    area: Area | None
    size: tuple[int, int]
    names: tuple[str, ...]
    tokens: int | None = None  # of its text, which the host repeats where texts of a batch differ in length

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of what the network is shown."""
        return self.size if self.area is None else self.area[:2]


class Labelled(NamedTuple):
    """A cond as the host names it to the network."""

    uuid: UUID
    label: int


def install_chunk_infos(model: ModelPatcher) -> None:
    """Make a clone tell its layers about the conditioning of each chunk."""
    install_wrapper(model, WrappersMP.CALC_COND_BATCH, note_conds)


def note_conds(
    executor: Any, model: Any, conds: list[list[dict] | None], x: Tensor, timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]:  # fmt: skip
    """CALC_COND_BATCH wrapper; inside context windows x is the window's part of the batch, of the same size."""
    found = {cond["uuid"]: _info(cond, x) for of_list in conds if of_list for cond in of_list}
    options = {**model_options.get("transformer_options", {}), CONDS: found}
    options[NEGATIVES] = _negatives(conds, run_in(options))
    if "model_function_wrapper" in model_options:
        conds, options[ORDER] = _numbered(conds, len(x))
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


def info_of(options: Mapping[str, Any], chunk: Any) -> ChunkInfo | None:
    """Of a chunk by its uuid; None where the model is called by code that has no conditioning."""
    return options.get(CONDS, {}).get(chunk)


def check_whole(options: Mapping[str, Any], infos: Sequence[ChunkInfo | None], what: str, owner: str) -> None:
    """RuntimeError where the network is shown a part of the picture that no conditioning asked for."""
    seen, window = tuple(options["original_shape"][-2:]), options.get("context_window")
    cut = window is not None and window.dim != 0
    if cut or any(info is not None and info.seen != seen for info in infos):
        raise RuntimeError(
            f"The {what} of {owner} belongs to the whole picture, but another node shows the model a part of "
            f"{seen[0]}x{seen[1]} cells (tiled diffusion, windows over width). Remove that node or the {what}."
        )


def is_negative(options: Mapping[str, Any], label: int) -> bool:
    """Whether the chunks with this number are those of a negative prompt."""
    return label in options.get(NEGATIVES, (NEGATIVE_LABEL,))


def true_chunks(options: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The options with the chunks that the rows of this call really are; reads the numbers from the device."""
    order: Sequence[Labelled] = options[ORDER]
    numbers, images = ([int(value) for value in column] for column in rows.T.tolist())
    per_chunk = gcd(*(len(list(same)) for _, same in groupby(numbers)))
    starts = range(0, len(numbers), per_chunk)
    found = [order[numbers[start]] for start in starts]
    return {
        **options,
        "uuids": [cond.uuid for cond in found],
        "cond_or_uncond": [cond.label for cond in found],
        IMAGES: [images[start : start + per_chunk] for start in starts],
    }


def _negatives(conds: list[list[dict] | None], run: Run) -> frozenset[int]:
    """The numbers of the lists that a guider calls negative; by the host's own order where it has no names.

    The first cond of a list is its own; copies that the host makes for areas of another list come behind.
    """
    names = {label: run.names.get(of_list[0]["uuid"]) for label, of_list in enumerate(conds) if of_list}
    return frozenset(
        label for label, name in names.items() if (label == NEGATIVE_LABEL if name is None else name in NEGATIVE_NAMES)
    )


def _numbered(conds: list[list[dict] | None], rows: int) -> tuple[list[list[dict] | None], list[Labelled]]:
    order: list[Labelled] = []
    numbered: list[list[dict] | None] = []
    for label, of_list in enumerate(conds):
        marked = []
        for cond in of_list or ():
            number = comfy.conds.CONDRegular(torch.tensor([[float(len(order)), float(i)] for i in range(rows)]))
            order.append(Labelled(cond["uuid"], label))
            marked.append({**cond, "model_conds": {**cond["model_conds"], ROWS: number}})
        numbered.append(None if of_list is None else marked)
    return numbered, order


def _info(cond: Mapping[str, Any], x: Tensor) -> ChunkInfo:
    size = tuple(x.shape[-2:])
    area = cond.get("area")
    if area is not None:
        lengths, starts = area[: len(area) // 2], area[len(area) // 2 :]
        (h, w), (top, left) = lengths[-2:], starts[-2:]
        area = Area(min(size[0] - top, h), min(size[1] - left, w), top, left)  # as the host cuts it
    text = getattr(cond["model_conds"].get("c_crossattn"), "cond", None)
    return ChunkInfo(area, size, tuple(cond.get(NAMES, ())), None if text is None else text.shape[1])
