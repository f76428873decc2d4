"""A painted mask on the grid of a layer.

A mask is for the whole picture. It is cut to the area of each chunk and resized to the height and width of the layer.
Each image of the batch may have another mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .chunk import Chunk
from .conds import Area, ChunkInfo
from .images import clamped


def mask_on_grid(mask: Tensor, grid: tuple[int, int], chunks: Sequence[Chunk]) -> Tensor:
    """Returns the mask of each chunk (chunks, 1 or b, h * w, 1) on the grid (h, w) of a layer.

    `mask` (m, height, width) is for the whole picture and has any size. Image i has mask i, and images beyond the last
    mask have the last one. A chunk of an area sees its part of the mask. Each part is resized once, bilinearly.
    """
    masks = [mask if len(mask) == 1 else mask[clamped(chunk.images, len(mask))] for chunk in chunks]
    return torch.stack([_resized(_part(own, chunk.info), grid) for own, chunk in zip(masks, chunks, strict=True)])


def shown_by(chunks: Sequence[Chunk]) -> tuple:
    """Returns what a mask on the grid depends on, as a key for a cache."""
    return tuple((chunk.info, chunk.images) for chunk in chunks)


def _part(mask: Tensor, info: ChunkInfo | None) -> Tensor:
    if info is None or info.area is None:
        return mask
    (top, bottom), (left, right) = _ends(mask, info.area, info.size)
    return mask[..., top:bottom, left:right]


def _ends(mask: Tensor, area: Area, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the range of pixels of the mask that an area covers, in each direction. It is never empty."""
    ends = []
    for pixels, cells, start, length in zip(
        mask.shape[-2:], size, (area.top, area.left), (area.h, area.w), strict=True
    ):  # fmt: skip
        first = min(round(start * pixels / cells), pixels - 1)
        ends.append((first, max(first + 1, round((start + length) * pixels / cells))))
    return ends


def _resized(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[:, None], size=grid, mode="bilinear").flatten(2).movedim(1, 2)
