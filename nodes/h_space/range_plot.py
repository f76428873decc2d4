"""The picture of Asyrp Range: both curves, where they reach their distances, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..inputs.drawing import (
    COLOURS,
    INK,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Panel,
    Sheet,
    empty_sheet,
    percent_x,
    short_sigma,
)
from .ranges import Curves

HEIGHT, BOTTOM = 640, 48
NUMBERS = 10  # percents that are written under the axis
DASH, SPACE = 8, 6  # pixels


class Found(NamedTuple):
    """One of the two results: its name, the distance asked for, the percent, and whether a curve reaches it."""

    name: str
    distance: float
    percent: float
    reached: bool


def plot_curves(curves: Curves, edit: Found, boost: Found) -> Tensor:
    """Returns a picture (1, h, w, 3) in 0..1: noise on the left, the finished picture on the right."""
    sheet, values = empty_sheet(HEIGHT), (curves.predicted, curves.noisy)
    largest = max(*curves.predicted, *curves.noisy, edit.distance, boost.distance)
    panel = Panel(TOP, HEIGHT - BOTTOM - 20, 0.0, 1.05 * largest or 1.0)
    of = "one picture" if curves.pictures == 1 else f"{curves.pictures} pictures, mean"
    sheet.draw.text((LEFT, 10), f"LPIPS ({curves.backbone}) from the picture, {of}", INK, sheet.font)
    sheet.axes(panel)
    _percents(sheet, panel, curves)
    xs = [percent_x(percent) for percent in curves.percents]
    names = ("prediction P_t", "noisy x_t")
    for number, (found, name) in enumerate(zip((edit, boost), names, strict=True)):
        colour = COLOURS[number]
        sheet.curve(xs, values[number], panel, colour)
        _dashed(sheet, (LEFT, panel.y(found.distance)), (WIDTH - RIGHT, panel.y(found.distance)), colour)
        if found.reached:
            _dashed(sheet, (percent_x(found.percent), panel.top), (percent_x(found.percent), panel.bottom), colour)
        sheet.legend(number, name, colour)
        _words(sheet, TOP + 80 + 88 * number, _result(found), colour)
    return sheet.picture()


def plot_words(lines: Sequence[str]) -> Tensor:
    """Returns a picture (1, h, w, 3) in 0..1 of some lines of text."""
    sheet = empty_sheet(HEIGHT)
    for i, line in enumerate(lines):
        sheet.draw.text((LEFT, TOP + 28 * i), line, INK, sheet.font)
    return sheet.picture()


def _result(found: Found) -> list[str]:
    if found.reached:
        return [found.name, f"{found.percent:.3f}", f"at distance {found.distance:g}"]
    return [found.name, f"{found.percent:g}, the default:", f"{found.distance:g} is not reached"]


def _percents(sheet: Sheet, panel: Panel, curves: Curves) -> None:
    for i in range(NUMBERS + 1):
        percent = i / NUMBERS
        sheet.draw.line((percent_x(percent), panel.bottom, percent_x(percent), panel.bottom + 4), INK)
        sheet.draw.text((percent_x(percent), panel.bottom + 8), f"{percent:g}", INK, sheet.font, anchor="ma")
        nearest = min(range(len(curves.percents)), key=lambda k: abs(curves.percents[k] - percent))
        if abs(curves.percents[nearest] - percent) < 0.5 / NUMBERS:
            sigma = short_sigma(curves.sigmas[nearest])
            sheet.draw.text(
                (percent_x(curves.percents[nearest]), panel.bottom + 28), sigma, INK, sheet.font, anchor="ma"
            )
    sheet.draw.text((WIDTH - RIGHT + 34, panel.bottom + 8), "percent of the run", INK, sheet.font)
    sheet.draw.text((WIDTH - RIGHT + 34, panel.bottom + 28), "sigma", INK, sheet.font)


def _words(sheet: Sheet, y: float, lines: Sequence[str], colour: str) -> None:
    for i, line in enumerate(lines):
        sheet.draw.text((WIDTH - RIGHT + 16, y + 22 * i), line, colour, sheet.font)


def _dashed(sheet: Sheet, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    along = [(b - a) / length for a, b in zip(start, end, strict=True)]
    for place in range(0, int(length), DASH + SPACE):
        to = min(place + DASH, length)
        ends = [(start[0] + along[0] * at, start[1] + along[1] * at) for at in (place, to)]
        sheet.draw.line(ends, colour)
