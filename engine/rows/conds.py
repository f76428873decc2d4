"""What the conditioning of each chunk says: its area of the picture, and the names that a node gave it.

The network gets the uuid of each conditioning, but not the conditioning. So this is noted before the host makes batches
of the conds, and found again by the uuid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from torch import Tensor

from ..run import Run, run_in
from .names import AROUND, BATCH_ROWS, LABELS, UUIDS, CondLists, with_numbers

CONDS, NEGATIVES = "reins_conds", "reins_negatives"
NEGATIVE_LABEL = 1  # of the host's own guider. Other guiders may number their conds in another order.
NEGATIVE_NAMES = ("negative", "empty_negative_prompt")
NAMES = "reins_names"  # key on a conditioning: entries with `only_for` act on it if it has their name


class Area(NamedTuple):
    """A part of the latent, in cells."""

    h: int
    w: int
    top: int
    left: int


class ChunkInfo(NamedTuple):
    """What is known of the conditioning of a chunk.

    `area` is None if it is for the whole picture. `size` is the height and width of the whole picture, in cells. Of the
    `frames` of a video its area begins at the frame `start`.
    """

    area: Area | None
    size: tuple[int, int]
    names: tuple[str, ...]
    tokens: int | None = None  # how many its text has before the host repeats it to fill a batch
    frames: int = 1
    start: int = 0

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width, in cells, of what the network is shown."""
        return self.size if self.area is None else self.area[:2]


def note_conds(
    executor: Any, model: Any, conds: CondLists, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper: notes what is known of each conditioning. Returns the predictions (b, c, h, w).

    Inside a context window, x (b, c, h, w) is the window's part of the batch.
    """
    infos = {cond["uuid"]: _info(cond, x) for of_list in conds if of_list for cond in of_list}
    options = {**model_options.get("transformer_options", {}), CONDS: infos, BATCH_ROWS: len(x)}
    options[NEGATIVES] = _negatives(conds, run_in(options))
    model_options = {**model_options, "transformer_options": options}
    if AROUND in model_options:
        conds, model_options = with_numbers(conds, len(x), model_options)
    return executor(model, conds, x, timestep, model_options)


def check_named(options: Mapping[str, Any]) -> None:
    """Raises RuntimeError if a sampler runs and another pack has taken one of the host's lists away."""
    if CONDS in options and not (options.get(UUIDS) and options.get(LABELS)):
        raise RuntimeError(
            "A call of the model should tell which prompt each row has, but another pack has taken that out of the "
            "options. Remove that pack from the model."
        )


def info_of(options: Mapping[str, Any], uuid: UUID | None) -> ChunkInfo | None:
    """Returns what is known of a chunk, by its uuid. None if code without conditioning calls the model."""
    return options.get(CONDS, {}).get(uuid)


def _negatives(conds: CondLists, run: Run) -> frozenset[int]:
    """Returns the labels of the lists that a guider calls negative. Without names the host's own order counts.

    Only the first cond of a list is looked at. Behind it the host may put copies for areas of another list.
    """
    names = {label: run.names.get(of_list[0]["uuid"]) for label, of_list in enumerate(conds) if of_list}
    return frozenset(
        label for label, name in names.items() if (label == NEGATIVE_LABEL if name is None else name in NEGATIVE_NAMES)
    )


def _info(cond: Mapping[str, Any], x: Tensor) -> ChunkInfo:
    size, start = tuple(x.shape[-2:]), 0
    frames = x.shape[2] if x.ndim == 5 else 1
    area = cond.get("area")
    if area is not None:
        lengths, starts = area[: len(area) // 2], area[len(area) // 2 :]
        (h, w), (top, left) = lengths[-2:], starts[-2:]
        start = starts[0] if x.ndim == 5 and len(starts) == 3 else 0
        area = Area(min(size[0] - top, h), min(size[1] - left, w), top, left)  # as the host cuts it
    text = getattr(cond["model_conds"].get("c_crossattn"), "cond", None)
    tokens = None if text is None else text.shape[1]
    return ChunkInfo(area, size, tuple(cond.get(NAMES, ())), tokens, frames, start)
