"""Sliding Window Guidance (2411.10257): the overlapping windows over a picture."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A part of the latent, in cells."""

    h: int
    w: int
    top: int
    left: int


def windows(size: tuple[int, int], tile: int, overlap: int) -> list[Window]:
    """Windows of equal size that cover a latent of `size` (h, w) in cells.

    They are `tile` long and `tile - overlap` apart, and the last one ends at the border. If a side is shorter than the
    tile, one window covers it.
    """
    (h, tops), (w, lefts) = (_along(side, tile, overlap) for side in size)
    return [Window(h, w, top, left) for top in tops for left in lefts]


def _along(side: int, tile: int, overlap: int) -> tuple[int, list[int]]:
    if side <= tile:
        return side, [0]
    last = side - tile
    return tile, [*range(0, last, tile - overlap), last]
