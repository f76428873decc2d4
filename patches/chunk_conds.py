"""What the conditioning behind each chunk says of it: its area of the picture, and the names it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .entries import install_wrapper

CONDS = "reins_conds"
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


def install_chunk_infos(model: ModelPatcher) -> None:
    """Make a clone tell its layers about the conditioning of each chunk."""
    install_wrapper(model, WrappersMP.CALC_COND_BATCH, note_conds)


def note_conds(
    executor: Any,
    model: Any,
    conds: list[list[dict] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper; inside context windows x is the window's part of the batch, of the same size."""
    found = {cond["uuid"]: _info(cond, x) for of_list in conds if of_list for cond in of_list}
    options = {**model_options.get("transformer_options", {}), CONDS: found}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


def info_of(options: Mapping[str, Any], chunk: Any) -> ChunkInfo | None:
    """Of a chunk by its uuid; None where the model is called by code that has no conditioning."""
    return options.get(CONDS, {}).get(chunk)


def _info(cond: Mapping[str, Any], x: Tensor) -> ChunkInfo:
    size = tuple(x.shape[-2:])
    area = cond.get("area")
    if area is not None:
        lengths, starts = area[: len(area) // 2], area[len(area) // 2 :]
        (h, w), (top, left) = lengths[-2:], starts[-2:]
        area = Area(min(size[0] - top, h), min(size[1] - left, w), top, left)  # as the host cuts it
    return ChunkInfo(area, size, tuple(cond.get(NAMES, ())))
