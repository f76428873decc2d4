"""What a prompt has made: the files and the hash of their pixels, or the reason why it made none."""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple


class File(NamedTuple):
    """A file that the server saved: the graph's name for it, its suffix, and its bytes as they are."""

    title: str
    suffix: str
    content: bytes


class Outcome(NamedTuple):
    """One prompt that has ended. `error` is empty if it went well."""

    key: str
    worker: str
    seconds: float = 0.0
    files: tuple[File, ...] = ()
    pixels: str = ""
    error: str = ""


def pixel_hash(contents: list[bytes]) -> str:
    """The SHA-256 of the pixels of all pictures, without the graph that the files hold. A film counts by its bytes."""
    found = hashlib.sha256()
    for content in contents:
        for part in _pixels(content):
            found.update(part)
    return found.hexdigest()


def _pixels(content: bytes) -> list[bytes]:
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        return [frame.tobytes() for frame in ImageSequence.Iterator(Image.open(io.BytesIO(content)))]
    except UnidentifiedImageError:
        return [content]
