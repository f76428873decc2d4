"""Several pictures in a row with labels, or one behind the other in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from .lettering import lettered


def side_by_side(pictures: Sequence[Tensor], labels: Sequence[str], enlarge: int, gap: int) -> Tensor:
    """Returns pictures (b, h, w, 3) from left to right on white, with a label below each if one of them has any.

    Pictures lower than the highest one are scaled to its height. A pixel then becomes `enlarge` times as many on
    either side. A single picture goes with every picture of the other batches.
    """
    count, height = max(map(len, pictures)), max(picture.shape[1] for picture in pictures)
    columns = [_enlarged(of_height(picture, height), enlarge).expand(count, -1, -1, -1) for picture in pictures]
    widths = [column.shape[2] for column in columns]
    lefts = [0, *accumulate(width + gap for width in widths[:-1])]
    height *= enlarge
    strip = lettered(labels, lefts, widths, height) if any(labels) else torch.ones(0, lefts[-1] + widths[-1], 3)
    row = torch.ones(count, height + len(strip), strip.shape[1], 3)
    row[:, height:] = strip
    for left, width, column in zip(lefts, widths, columns, strict=True):
        row[:, :height, left : left + width] = column
    return row


def of_height(picture: Tensor, height: int) -> Tensor:
    """Returns pictures (b, h, w, 3) scaled to a height, with the same proportions."""
    return resized(picture, height, max(1, round(picture.shape[2] * height / picture.shape[1])))


def covering(picture: Tensor, height: int, width: int) -> Tensor:
    """Returns the middle of pictures (b, h, w, 3) that has the proportions of another size, scaled to this size."""
    h, w = picture.shape[1:3]
    rows, columns = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    top, left = (h - rows) // 2, (w - columns) // 2
    return resized(picture[:, top : top + rows, left : left + columns], height, width)


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Returns pictures (b, h, w, 3) in another size. What has this size is returned as it is."""
    if picture.shape[1:3] == (height, width):
        return picture
    # The host's common_upscale has no antialiasing in bicubic, and 8 bits in lanczos.
    scaled = functional.interpolate(picture.movedim(-1, 1), (height, width), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1).movedim(1, -1)


def _enlarged(picture: Tensor, times: int) -> Tensor:
    return picture if times == 1 else picture.repeat_interleave(times, 1).repeat_interleave(times, 2)
