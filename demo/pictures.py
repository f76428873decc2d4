"""Saves the pictures that the workflows made, and draws them on one sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL = 256
TITLE = 24
GAP = 12
INK, PAPER = "#202020", "#f4f4f0"


class Picture(NamedTuple):
    """One saved picture and its title on the sheet."""

    title: str
    path: Path


def save_pictures(workflow: str, files: list[tuple[str, bytes]], folder: Path) -> list[Picture]:
    """Writes each of (file name on the server, content) as workflow-label.png. Returns the saved pictures.

    The label is the graph's name for the picture: the server's name without its running number. The bytes of a PNG are
    written as they are, because they contain the graph.
    """
    pictures: list[Picture] = []
    for title, (_, content) in zip(titles_of([name for name, _ in files]), files, strict=True):
        path = folder / f"{workflow}-{title.replace(' #', '_')}.png"
        if content.startswith(b"\x89PNG"):
            path.write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).save(path)
        pictures.append(Picture(title, path))
    return pictures


def titles_of(names: Sequence[str]) -> list[str]:
    """The label of each file on the server, with a number if others before it have the same one."""
    labels = [re.sub(r"_\d+_$", "", Path(name).stem) for name in names]
    before = [labels[:place].count(label) for place, label in enumerate(labels)]
    return [f"{label} #{same + 1}" if same else label for label, same in zip(labels, before, strict=True)]


def contact_sheet(pictures: list[Picture], path: Path) -> None:
    """Writes a sheet with all pictures and their titles in a grid."""
    columns = min(8 if len(pictures) > 24 else 4, len(pictures))
    places = cells([picture.title for picture in pictures], columns)
    rows = places[-1][1] + 1
    width, height = CELL + GAP, CELL + TITLE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for picture, (column, row) in zip(pictures, places, strict=True):
        left, top = GAP + column * width, GAP + row * height
        draw.text((left, top), fitting(picture.title, font), fill=INK, font=font)
        with Image.open(picture.path) as image:
            sheet.paste(ImageOps.contain(image.convert("RGB"), (CELL, CELL)), (left, top + TITLE))
    sheet.save(path)


def cells(titles: Sequence[str], columns: int) -> list[tuple[int, int]]:
    """The (column, row) of each picture. A batch that fits into one row is not divided."""
    places: list[tuple[int, int]] = []
    index = 0
    for _, batch in groupby(titles, lambda title: title.split(" #")[0]):
        count = len(list(batch))
        left = columns - index % columns
        index += left if left < count <= columns else 0
        places += [(i % columns, i // columns) for i in range(index, index + count)]
        index += count
    return places


def fitting(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The title, cut if it is wider than a cell."""
    if font.getlength(title) <= CELL:
        return title
    while title and font.getlength(f"{title}…") > CELL:
        title = title[:-1]
    return f"{title}…"
