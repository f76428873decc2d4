"""Which images of the whole batch the rows of a chunk are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def images_of(options: Mapping[str, Any], rows: int) -> Sequence[int]:
    """The index of each of a chunk's rows in the batch that is sampled: under context windows a part of it."""
    window = options.get("context_window")
    if window is not None:
        return images_of_window(window, rows)
    # AnimateDiff-Evolved names its windows by a key of its own
    sub_indices = (options.get("ad_params") or {}).get("sub_idxs")
    return range(rows) if sub_indices is None else list(sub_indices)


def images_of_window(window: Any, rows: int) -> list[int]:
    """Which images a context window of the host holds; 0.33 may put one more before them, as an anchor."""
    images = list(window.index_list)
    return images if len(images) == rows else [window.causal_anchor_index, *images]
