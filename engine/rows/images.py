"""Which images of the whole batch the rows of a chunk are.

A context window shows the network a part of the batch. What a method keeps for each image, such as a mask or a hint, is
looked up by the index of the image in the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .names import IMAGES


def images_of_chunks(options: Mapping[str, Any], count: int, rows: int) -> list[tuple[int, ...]]:
    """Returns for each of `count` chunks the index of each of its `rows` rows in the batch that is sampled.

    In a context window over the batch these are the images of the window.
    Raises RuntimeError if the window holds fewer images than the network is shown.
    """
    inside = options.get(IMAGES) or [range(rows)] * count
    shown = 1 + max(max(images) for images in inside)
    whole = images_in_window(options, shown)
    if whole is None:
        return [tuple(images) for images in inside]
    if shown > len(whole):
        raise RuntimeError(
            f"A context window should hold the {shown} pictures that the model is shown, but holds {len(whole)}: "
            f"another pack changes the batch inside the window. Remove that pack from the model."
        )
    return [tuple(whole[i] for i in images) for images in inside]


def images_in_window(options: Mapping[str, Any], rows: int) -> tuple[int, ...] | None:
    """Returns which images of the batch the network is shown. None if it is shown all of them."""
    window = options.get("context_window")
    if window is not None and window.dim == 0:
        return images_of_window(window, rows)
    # AnimateDiff-Evolved lists the images of its windows under another key
    images = (options.get("ad_params") or {}).get("sub_idxs")
    return None if images is None else tuple(images)


def clamped(images: Sequence[int], count: int) -> list[int]:
    """Returns which of `count` things each image has: that of its index, or the last if there are fewer things."""
    return [min(i, count - 1) for i in images]


def rows_for(images: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns the row of each image (images, ...) of tensors (1 or n, ...). Further images have the last row."""
    if len(tensors[0]) == len(images) == 1:
        return tensors
    if len(tensors[0]) == 1:
        return tuple(tensor.expand(len(images), *tensor.shape[1:]) for tensor in tensors)
    rows = clamped(images, len(tensors[0]))
    return tuple(tensor[rows] for tensor in tensors)


def images_of_window(window: Any, rows: int) -> tuple[int, ...]:
    """Returns which images a context window of the host holds. ComfyUI 0.33 may put one more first, as an anchor."""
    images = tuple(window.index_list)
    return images if rows <= len(images) else (window.causal_anchor_index, *images)
