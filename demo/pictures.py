"""Saves what the workflows made, and puts one sheet of it together."""

from __future__ import annotations

import io
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


def save_pictures(name: str, contents: list[bytes], folder: Path) -> list[Path]:
    """Writes name.png, name_2.png, ...; PNG bytes stay as they are, for they carry the workflow."""
    paths = []
    for number, content in enumerate(contents, 1):
        path = folder / (f"{name}.png" if number == 1 else f"{name}_{number}.png")
        if content.startswith(b"\x89PNG"):
            path.write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).save(path)
        paths.append(path)
    return paths


def contact_sheet(pictures: list[Picture], path: Path, columns: int = 4) -> None:
    """Draws all pictures with their titles in a grid."""
    columns = min(columns, len(pictures))
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
