"""Makes the thumbnails of the examples from the pictures of a demo: without a method beside with it, and large.

python -m demo.thumbnails output/demo example_workflows      after a demo that ran all workflows of the demo model

Which pictures an example shows, and what is written beside them, is the table in `thumbnail_table.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .pictures import INK, PAPER
from .thumbnail_table import BORROWED, NEEDED, SHOWN, Part, Thumbnail

SIDE = 512
BADGE = (240, 72)  # of the corner that stays empty, for the editor writes the name of the pack there
MARGIN, GAP = 6, 8
LABEL = 40  # height of the line below a picture
STRIP = 44  # height of the line at the bottom that says which files an example needs
STRIP_GROUND = "#ffd34d"
INSET = {1: 150, 2: 122}  # side of the small pictures at the top, by their number
FONT, SMALLEST = 27, 16
QUALITY = 80  # with all colours, for a shape is told from its ground by colour alone


class Box(NamedTuple):
    """A place in pixels."""

    left: int
    top: int
    width: int
    height: int


def saved_file(part: Part, folder: Path) -> Path:
    """Where a demo saved the picture. The first of a batch has no number."""
    number = f"_{part.number}" if part.number > 1 else ""
    return folder / f"{part.saved}{number}.png"


def load(part: Part, folder: Path) -> Image.Image:
    """The whole picture, cut out of the row if the workflow puts several side by side."""
    with Image.open(saved_file(part, folder)) as saved:
        picture = saved.convert("RGB")
    if part.place is None:
        return picture
    left = part.place * (part.side + part.side // 16)  # the workflows leave a sixteenth between two pictures
    return picture.crop((left, 0, left + part.side, part.side))  # without the labels below


def fill(picture: Image.Image, size: tuple[int, int], part: Part) -> Image.Image:
    """The part of a picture around its centre of interest that has the shape of `size`, in this size."""
    rows = min(part.rows, picture.width / picture.height * size[1] / size[0])
    height = rows * picture.height
    width = height * size[0] / size[1]
    left = min(max(part.at[0] * picture.width - width / 2, 0), picture.width - width)
    top = min(max(part.at[1] * picture.height - height / 2, 0), picture.height - height)
    return picture.resize(size, Image.Resampling.NEAREST, (left, top, left + width, top + height))


def contain(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """All of a picture in the middle of a paper of this size."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return sheet


def font_for(text: str, width: int, size: float = FONT) -> ImageFont.FreeTypeFont:
    """The largest font up to `size` in which each line of the text is at most `width` pixels long."""
    lines = text.split("\n")
    while size > SMALLEST and max(ImageFont.load_default(size).getlength(line) for line in lines) > width:
        size -= 1
    return ImageFont.load_default(size)


def boxes(thumbnail: Thumbnail, strip: bool) -> list[Box]:
    """The places of the large pictures, from left to right."""
    count = len(thumbnail.parts)
    top = BADGE[1] + 4 if not thumbnail.given else MARGIN + INSET[len(thumbnail.given)] + GAP
    width = (SIDE - 2 * MARGIN - (count - 1) * GAP) // count
    room = SIDE - top - LABEL - (STRIP if strip else 0)
    height = min(room, round(width * thumbnail.tallest))
    top += (room - height) // 2
    return [Box(MARGIN + i * (width + GAP), top, width, height) for i in range(count)]


def draw(thumbnail: Thumbnail, folder: Path, needs: str | None = None) -> Image.Image:
    """The thumbnail, from the pictures in a folder; `needs` is what the strip at its bottom says."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(sheet)
    for part, box in zip(thumbnail.parts, boxes(thumbnail, bool(needs)), strict=True):
        picture = load(part, folder)
        size = (box.width, box.height)
        sheet.paste(contain(picture, size) if part.whole else fill(picture, size, part), box[:2])
        middle = (box.left + box.width / 2, box.top + box.height + LABEL / 2)
        pen.text(middle, part.label, fill=INK, font=font_for(part.label, box.width), anchor="mm")
    _draw_head(sheet, thumbnail, folder)
    if needs:
        pen.rectangle((0, SIDE - STRIP, SIDE, SIDE), fill=STRIP_GROUND)
        text = f"on the demo model; needs {needs} files"
        pen.text((SIDE / 2, SIDE - STRIP / 2), text, fill=INK, font=font_for(text, SIDE - 2 * MARGIN), anchor="mm")
    return sheet


def _draw_head(sheet: Image.Image, thumbnail: Thumbnail, folder: Path) -> None:
    """Draws what is given at the right, what is said of it at its left, below the corner of the badge."""
    pen = ImageDraw.Draw(sheet)
    right = SIDE - MARGIN
    for part in reversed(thumbnail.given):
        side = INSET[len(thumbnail.given)]
        right -= side
        sheet.paste(fill(load(part, folder), (side, side), part), (right, MARGIN))
        right -= GAP
    if thumbnail.given:
        middle, room = (BADGE[1] + MARGIN + INSET[len(thumbnail.given)]) / 2, right - MARGIN
    else:
        middle, room = BADGE[1] / 2, right - BADGE[0] - GAP
    font = font_for(thumbnail.said, room, thumbnail.letters)
    pen.text((right, middle), thumbnail.said, fill=INK, font=font, anchor="rm", align="right")


def needed(name: str) -> str | None:
    """The released model of which an example needs files; None for one that runs on the demo model."""
    return None if name in SHOWN else next((model for part, model in NEEDED.items() if f"_{part}" in name), None)


def draw_example(name: str, folder: Path) -> Image.Image:
    """The thumbnail of an example. One for released files has the pictures of the demo model, and a strip says so."""
    return draw((SHOWN | BORROWED)[name], folder, needed(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="the folder where the demo wrote its pictures")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", help="names of examples")
    options = parser.parse_args()
    for name in options.only or [*SHOWN, *BORROWED]:
        path = options.out / f"{name}.jpg"
        draw_example(name, options.pictures).save(path, quality=QUALITY, subsampling=0, optimize=True)
        print(f"{path}  {path.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
