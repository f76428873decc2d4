"""grid.png: the grid as one picture, to be shared."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ..demo.pictures import INK, PAPER
from .records import PARTIAL, PICTURES, shown

if TYPE_CHECKING:
    from .choice import Choice
    from .plan import Plan, Row
    from .records import Record, Records

LARGEST, SMALLEST, WIDEST = 256, 16, 8192  # pixels: of a picture's side, and of the sheet
GAP, LINE, HEAD = 6, 18, 200  # between cells; of a line of text; the widest title of a row
LINES = 3  # of a title


def write_sheet(plan: Plan, records: Records, choice: Choice) -> None:
    """Writes the grid of the first value of each setting that is neither rows nor columns, which its foot names."""
    rows, columns = (_steps(plan, place) for place in choice)
    cells = cells_of(plan, records, choice)
    if not cells:
        return
    across = max(len(record.pictures) for record in cells.values())
    side = max(SMALLEST, min(LARGEST, WIDEST // max(len(columns) * across, len(rows)) - GAP))
    font = ImageFont.load_default(13)
    titles = [_title(plan, choice.rows, value) for value in rows]
    left = min(HEAD, 2 * GAP + round(max(map(font.getlength, titles)))) if choice.rows is not None else GAP
    top = LINES * LINE if choice.columns is not None else GAP
    width, height = side * across + GAP, side + GAP
    foot = _foot(plan, choice)
    sheet = Image.new("RGB", (left + width * len(columns), top + height * len(rows) + (LINE + GAP) * bool(foot)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, value in enumerate(columns):
        _write(draw, (left + x * width, GAP // 2), _title(plan, choice.columns, value), width, font)
    for y, title in enumerate(titles):
        _write(draw, (GAP, top + y * height), title, left - GAP, font)
    for (y, x), record in cells.items():
        for number, name in enumerate(record.pictures):
            _paste(sheet, records.folder / PICTURES / name, (left + x * width + number * side, top + y * height), side)
    draw.text((GAP, sheet.height - LINE), foot, fill=INK, font=font)
    partial = records.folder / f"grid.png{PARTIAL}"
    sheet.save(partial, "PNG", optimize=True)
    partial.replace(records.folder / "grid.png")


def cells_of(plan: Plan, records: Records, choice: Choice) -> dict[tuple[int, int], Record]:
    """What stands at each (row, column). Of the other settings the first row's values count."""
    down, across = (_steps(plan, place) for place in choice)
    found: dict[tuple[int, int], Record] = {}
    for row in plan.rows:
        record = records.by_key.get(row.key)
        if record and record.pictures and _is_shown(plan, row, choice):
            place = [
                0 if at is None else steps.index(shown(row.values[at]))
                for at, steps in zip(choice, (down, across), strict=True)
            ]
            found.setdefault((place[0], place[1]), record)
    return found


def _steps(plan: Plan, place: int | None) -> list[str]:
    return [""] if place is None else [shown(value) for value in plan.values_of(place)]


def _is_shown(plan: Plan, row: Row, choice: Choice) -> bool:
    """Whether a row has the first value of every other setting. What varies with the rows or columns may differ."""
    grid = {plan.axes[place] for place in choice if place is not None}
    first = plan.rows[0].values
    others = [place for place in range(len(plan.labels)) if plan.axes[place] not in grid]
    return all(row.values[place] == first[place] for place in others)


def _title(plan: Plan, place: int | None, value: str) -> str:
    return "" if place is None else f"{plan.labels[place]} {value}"


def _foot(plan: Plan, choice: Choice) -> str:
    """The settings that are the same in the whole grid."""
    grid = {plan.axes[place] for place in choice if place is not None}
    others = [place for place in range(len(plan.labels)) if plan.axes[place] not in grid]
    return ", ".join(f"{plan.labels[place]} {shown(plan.rows[0].values[place])}" for place in others)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, font: ImageFont.FreeTypeFont) -> None:
    letters = max(1, int(width / font.getlength("n")))
    lines = [text] if font.getlength(text) <= width else textwrap.wrap(text, letters)
    cut = lines[:LINES] if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][: letters - 1] + "…"]
    draw.multiline_text(at, "\n".join(cut), fill=INK, font=font, spacing=2)


def _paste(sheet: Image.Image, path: object, at: tuple[int, int], side: int) -> None:
    try:
        with Image.open(path) as image:
            sheet.paste(ImageOps.contain(image.convert("RGB"), (side, side)), at)
    except UnidentifiedImageError:
        pass  # a film has no place on a sheet
