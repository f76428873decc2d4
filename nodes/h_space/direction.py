"""Directions in h-space, the bottleneck of a UNet (Asyrp, 2210.10960): from files, from prompts, or as networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...engine.layers.features import FeatureSite, channels_at
from ...engine.rows.chunk import Chunk
from ...engine.rows.conds import ChunkInfo
from ...engine.run import Run, Step
from ...engine.unet import family_of, unet_of
from ...models.h_space.files import Directions
from ...models.h_space.steps import at_sigma

logger = logging.getLogger(__name__)
SITE = FeatureSite("output", 0)  # after the middle block and its control, before the first skip joins
FAMILY = "family"
REASON = "h-space is the bottleneck of a UNet."


class EditedRows(NamedTuple):
    """The rows of one chunk whose h (b, c, h, w) is edited, with the network's embedding (b, width) of the time."""

    h: Tensor
    embedding: Tensor | None
    chunk: Chunk
    window: Any  # the key of the context window, different for each window of a step
    sigma: float
    run: Run
    step: Step | None

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.h.shape[-2:])


class HDirection(Protocol):
    """A direction along which h may be moved."""

    name: str
    channels: int | None  # None: any number

    def at(self, rows: EditedRows) -> Tensor | None:
        """Returns the change of h (1 or b, c, h, w), or None if it is not known yet in this step."""


@dataclass(frozen=True, eq=False)
class StoredDirection:
    """Directions for some noise levels, from a file or captured, with the metadata of a file."""

    name: str
    directions: Directions
    metadata: Mapping[str, str]

    @property
    def channels(self) -> int:
        return self.directions.dh.shape[1]

    def at(self, rows: EditedRows) -> Tensor:
        like = rows.h

        def prepare() -> Tensor:
            whole = at_sigma(self.directions.dh, self.directions.sigmas, rows.sigma)[None]
            return change_on_grid(whole.to(like.device), rows.chunk.info, rows.grid).to(like.dtype)

        key = (self, rows.grid, rows.chunk.info, like.dtype, like.device)
        return rows.run.once_at(rows.sigma, key, prepare)


@dataclass(frozen=True, eq=False)
class BlockDirection:
    """A delta block: a small network that reads h and the time (equation 9)."""

    name: str
    network: ModelPatcher
    channels: int
    time: int | None

    def at(self, rows: EditedRows) -> Tensor:
        weights = next(self.network.model.parameters())
        embedding = None if rows.embedding is None else rows.embedding.to(weights.dtype)
        return self.network.model(rows.h.to(weights.dtype), embedding).to(rows.h.dtype)


@dataclass(frozen=True, eq=False)
class PromptDirection:
    """The difference that two prompts make to h at the same noisy picture, computed anew at each step."""

    name: str
    positive: list  # for all that a prompt holds beside its text
    source: list
    target: list
    source_id: UUID
    target_id: UUID
    channels: None = None

    def at(self, rows: EditedRows) -> Tensor | None:
        source, target = (noted_h(rows.step, side, rows.window) for side in (self.source_id, self.target_id))
        if source is None or target is None:
            return None
        return change_on_grid(target - source, rows.chunk.info, rows.grid).to(rows.h.dtype)


def note_h(step: Step, side: UUID, window: Any, h: Tensor) -> None:
    """Notes h (b, c, h, w) of a prompt for the rest of a step."""
    step.notes[(side, window)] = h


def noted_h(step: Step | None, side: UUID, window: Any) -> Tensor | None:
    """Returns h (b, c, h, w) that was noted of a prompt in a step, or None."""
    return None if step is None else step.notes.get((side, window))


def change_on_grid(change: Tensor, info: ChunkInfo | None, grid: tuple[int, int]) -> Tensor:
    """Returns the part of a picture's change (1 or b, c, h, w) that a chunk shows, resized to its grid (bilinear)."""
    if change.shape[-2:] == (1, 1):
        return change
    if info is not None and info.area is not None:
        h, w, top, left = info.area
        change = _resized(change, info.size)[..., top : top + h, left : left + w]
    return _resized(change, grid)


def _resized(change: Tensor, size: tuple[int, int]) -> Tensor:
    if change.shape[-2:] == tuple(size):
        return change
    return functional.interpolate(change.float(), size=tuple(size), mode="bilinear", antialias=True)


def check_direction(direction: HDirection, model: ModelPatcher) -> None:
    """Checks the widths of a direction, and warns if it is of another family of models.

    Raises ValueError if the direction does not fit this model.
    """
    unet = unet_of(model, REASON)
    channels = channels_at(unet, SITE)
    if direction.channels not in (None, channels):
        raise ValueError(
            f"The h-space of this model has {channels} channels, but the direction {direction.name} has "
            f"{direction.channels}: it was made for another kind of model. Capture one on this model."
        )
    time = unet.time_embed[0].out_features
    if isinstance(direction, BlockDirection) and direction.time not in (None, time):
        raise ValueError(
            f"The time embedding of this model has {time} numbers, but the delta block {direction.name} reads "
            f"{direction.time}: it was made for another kind of model. Capture a direction on this model."
        )
    made_on = direction.metadata.get(FAMILY) if isinstance(direction, StoredDirection) else None
    family = family_of(unet, model)
    if made_on not in (None, family):
        logger.warning(
            "The direction %s was captured on a model that is %s. On this one, which is %s, it may mean nothing.",
            direction.name, made_on, family,
        )  # fmt: skip


def as_direction(direction: Any) -> HDirection:
    """Returns a direction as it is. Raises ValueError if it is something else."""
    if not isinstance(direction, StoredDirection | BlockDirection | PromptDirection):
        raise ValueError(
            f"direction should come from one of the nodes for h-space directions, but is {type(direction).__name__}. "
            f"Connect such a node."
        )
    return direction
