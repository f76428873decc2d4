"""The picture that a run saved."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from reins.demo.client import Client, Result


def picture(client: Client, result: Result) -> Image.Image:
    """The only one, or the first of a batch."""
    return Image.open(io.BytesIO(client.image_bytes(result.image_files()[0]))).convert("RGB")


def pixel_hash(client: Client, result: Result) -> str:
    """Of the pixels alone: the file also holds the graph."""
    files = [Image.open(io.BytesIO(client.image_bytes(file))) for file in result.image_files()]
    return hashlib.sha256(b"".join(image.tobytes() for image in files)).hexdigest()
