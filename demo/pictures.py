"""Saves what the workflows made, and puts one sheet of it together."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL = 256
TITLE = 24
GAP = 12
INK, PAPER = "#202020", "#f4f4f0"


class Picture(NamedTuple):
    """One saved picture and the line that stands above it on the sheet."""

    title: str
    path: Path


def save_pictures(workflow: str, files: list[tuple[str, bytes]], folder: Path) -> list[Picture]:
    """Writes each (file name on the server, content) as workflow-label.png; PNG bytes stay, for they carry the graph.

    The label is what the graph calls the picture: the server's name without its running number.
    """
    pictures: list[Picture] = []
    for name, content in files:
        label = re.sub(r"_\d+_$", "", Path(name).stem)
        same = sum(picture.title.split(" #")[0] == label for picture in pictures)
        title = f"{label} #{same + 1}" if same else label
        path = folder / f"{workflow}-{title.replace(' #', '_')}.png"
        if content.startswith(b"\x89PNG"):
            path.write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).save(path)
        pictures.append(Picture(title, path))
    return pictures


def contact_sheet(pictures: list[Picture], path: Path) -> None:
    """Draws all pictures with their titles in a grid; a batch of four stays in one row."""
    columns = min(8 if len(pictures) > 24 else 4, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = CELL + GAP, CELL + TITLE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, picture in enumerate(pictures):
        left, top = GAP + index % columns * width, GAP + index // columns * height
        draw.text((left, top), fitting(picture.title, font), fill=INK, font=font)
        with Image.open(picture.path) as image:
            sheet.paste(ImageOps.contain(image.convert("RGB"), (CELL, CELL)), (left, top + TITLE))
    sheet.save(path)


def fitting(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The title, cut where it is wider than a cell."""
    if font.getlength(title) <= CELL:
        return title
    while title and font.getlength(f"{title}…") > CELL:
        title = title[:-1]
    return f"{title}…"
