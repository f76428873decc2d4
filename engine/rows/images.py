"""Which images of the whole batch the rows of a chunk are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .conds import IMAGES


def images_of(options: Mapping[str, Any], chunk: int, rows: int) -> Sequence[int]:
    """The index of each row of a chunk, by its place in the call, in the batch that is sampled.

    Under context windows over the batch that is a part of it.
    """
    given = options.get(IMAGES)
    inside = range(rows) if given is None else given[chunk]
    whole = images_in_window(options, rows)
    return inside if whole is None else [whole[i] for i in inside]


def images_in_window(options: Mapping[str, Any], rows: int) -> Sequence[int] | None:
    """Which images of the batch the network is shown; None where it is shown all of them."""
    window = options.get("context_window")
    if window is not None and window.dim == 0:
        return images_of_window(window, rows)
    # AnimateDiff-Evolved names its windows by a key of its own
    return (options.get("ad_params") or {}).get("sub_idxs")


def clamped(images: Sequence[int], count: int) -> list[int]:
    """Which of `count` given things each image has: its own, those beyond the last the last."""
    return [min(i, count - 1) for i in images]


def images_of_window(window: Any, rows: int) -> list[int]:
    """Which images a context window of the host holds; 0.33 may put one more before them, as an anchor."""
    images = list(window.index_list)
    return images if len(images) == rows else [window.causal_anchor_index, *images]
