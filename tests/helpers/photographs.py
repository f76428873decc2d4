"""The photographs of demo/photographs as the host's Load Image gives them, and resizing worked out by numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import folder_paths
import numpy as np
import pytest
from PIL import Image, ImageDraw
from torch import Tensor

from nodes import LoadImage  # the host's

FOLDER = Path(__file__).parents[2] / "demo" / "photographs"


def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph or a hint in three channels, shrunk to a width and a height if they are given."""
    with Image.open(FOLDER / name) as image:
        image = image.convert("RGB")
        return image if size is None else image.resize(size, Image.Resampling.BOX)


def values(image: Image.Image) -> np.ndarray:
    """The numbers (h, w, 3) of a picture, from 0 to 1."""
    return np.asarray(image.convert("RGB")).astype(np.float64) / 255


def loaded(image: Image.Image | Path, folder: Path, ending: str = "png", **save: object) -> tuple[Tensor, Tensor]:
    """IMAGE and MASK of the host's Load Image, of a file or of a picture that is stored in a folder first."""
    if isinstance(image, Image.Image):
        path = folder / f"stored.{ending}"
        image.save(path, **save)
    else:
        path = image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "input_directory", str(path.parent))
        return LoadImage().load_image(path.name)


def painted(size: tuple[int, int]) -> Image.Image:
    """An ellipse, 255, and a bar, 128, on 0, as they are painted on a picture of a width and a height."""
    mask = Image.new("L", size)
    w, h = size
    ImageDraw.Draw(mask).ellipse([w // 7, h // 5, w // 2, h - h // 6], fill=255)
    ImageDraw.Draw(mask).rectangle([w // 3, h // 3, w - w // 9, h // 2], fill=128)
    return mask


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)


class Kernel(NamedTuple):
    """What a pixel counts by its distance, and the distance from which it counts nothing."""

    value: Callable[[np.ndarray], np.ndarray]
    reach: float


CUBIC = Kernel(_cubic, 2.0)  # Keys' with a = -0.5
LANCZOS = Kernel(lambda x: np.sinc(x) * np.sinc(x / 3), 3.0)


def resized(array: np.ndarray, size: tuple[int, int], kernel: Kernel) -> np.ndarray:
    """An array (h, w, c) resized to a height and a width by a kernel, which is as wide as the pixels of the result."""
    rows, columns = (_weights(old, new, kernel) for old, new in zip(array.shape, size, strict=False))
    return np.einsum("ij,kl,jlc->ikc", rows, columns, array, optimize=True)


def resized_in_bytes(array: np.ndarray, size: tuple[int, int], kernel: Kernel) -> np.ndarray:
    """The same for pictures in bytes: what leaves a direction, first across and then down, is a byte again."""
    across = np.round(255 * resized(array, (len(array), size[1]), kernel)).clip(0, 255) / 255
    return np.round(255 * resized(across, size, kernel)).clip(0, 255) / 255


def _weights(old: int, new: int, kernel: Kernel) -> np.ndarray:
    """How much each old pixel counts in each new one, (new, old)."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    distance = (np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(distance) < kernel.reach, kernel.value(distance), 0.0)
    return weights / weights.sum(1, keepdims=True)


def bilinear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An array (h, w) at the centres of the cells of a grid (h, w), between its four nearest pixels."""
    found = array
    for axis, new in enumerate(size):
        old = found.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (found.ndim - 1 - axis))
        found = found.take(low, axis) * (1 - share) + found.take(np.minimum(low + 1, old - 1), axis) * share
    return found


def means(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mean of an array (h, w, c) over each cell of a grid (h, w), with every pixel that a cell touches."""
    rows, columns = (
        [slice(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
        for old, new in zip(array.shape, size, strict=False)
    )
    return np.array([[array[row, column].mean((0, 1)) for column in columns] for row in rows])
