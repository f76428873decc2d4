"""A picture of what a scope has noted: the size of every change of the result, and its cosine to that of CFG.

Beneath lies the axis of start_percent and end_percent, with a mark for each call of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...engine.scope import Record
from ..inputs.drawing import COLOURS, INK, LEFT, RIGHT, TOP, WIDTH, Panel, Sheet, empty_sheet, percent_x, short_sigma

HEIGHT, GAP, BOTTOM = 740, 56, 148
AXIS = HEIGHT - 56  # of percents
MARK = 14  # the height of a call on it
LEAD, TENTHS = "#b8b8b8", 10


class Curve(NamedTuple):
    """One method over the calls of the model, with nan for calls in which it did not act."""

    name: str
    norms: Sequence[float]
    cosines: Sequence[float]


def curves(record: Record) -> tuple[list[float], list[Curve]]:
    """Returns the noise level of each call, and a curve for each method. Reads the numbers from the device."""
    sigmas = [moment.sigma for moment in record.moments]
    values_of: dict[str, tuple[list[float], list[float]]] = {}
    for i, moment in enumerate(record.moments):
        counts: dict[str, int] = {}
        for reading in moment.readings:
            counts[reading.name] = counts.get(reading.name, 0) + 1
            name = reading.name if counts[reading.name] == 1 else f"{reading.name} ({counts[reading.name]})"
            empty = [math.nan] * len(sigmas)
            norms, cosines = values_of.setdefault(name, (list(empty), list(empty)))
            norms[i], cosines[i] = float(reading.norm), float(reading.cosine)
    return sigmas, [Curve(name, *values) for name, values in values_of.items()]


def plot(record: Record) -> Tensor:
    """Returns a picture (1, h, w, 3) in 0..1."""
    sigmas, drawn = curves(record)
    sheet = empty_sheet(HEIGHT)
    middle = TOP + round((HEIGHT - TOP - GAP - BOTTOM) * 0.6)
    largest = max((value for curve in drawn for value in curve.norms if not math.isnan(value)), default=1.0)
    norms = Panel(TOP, middle, 0.0, 1.05 * largest or 1.0)
    cosines = Panel(middle + GAP, HEIGHT - BOTTOM, -1.0, 1.0)
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(sigmas) for i in range(len(sigmas))]
    sheet.draw.text((LEFT, 10), "size of each change (root mean square)", INK, sheet.font)
    sheet.draw.text((LEFT, middle + GAP - 24), "cosine to positive - negative", INK, sheet.font)
    for panel in (norms, cosines):
        sheet.axes(panel)
    for i in range(0, len(xs), max(1, len(xs) // 10)):
        sheet.draw.text((xs[i], HEIGHT - BOTTOM + 6), short_sigma(sigmas[i]), INK, sheet.font, anchor="ma")
    sheet.draw.text((WIDTH - RIGHT + 10, HEIGHT - BOTTOM + 6), "sigma", INK, sheet.font)
    _percent_axis(sheet, xs, record.percents())
    for number, curve in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        sheet.curve(xs, curve.norms, norms, colour)
        sheet.curve(xs, curve.cosines, cosines, colour)
        sheet.legend(number, curve.name, colour)
    return sheet.picture()


def _percent_axis(sheet: Sheet, xs: Sequence[float], of_calls: Sequence[float]) -> None:
    """Draws the axis, with a line from each call at `xs` in the panels to its mark."""
    draw = sheet.draw
    for x, percent in zip(xs, of_calls, strict=True):
        draw.line((x, HEIGHT - BOTTOM + 28, percent_x(percent), AXIS - MARK), LEAD)
    draw.line((percent_x(0), AXIS, percent_x(1), AXIS), INK)
    for percent in of_calls:
        x = round(percent_x(percent))
        draw.rectangle((x - 1, AXIS - MARK, x, AXIS), INK)
    for tenth in range(TENTHS + 1):
        x = percent_x(tenth / TENTHS)
        draw.line((x, AXIS, x, AXIS + 5), INK)
        draw.text((x, AXIS + 10), f"{tenth / TENTHS:g}", INK, sheet.font, anchor="ma")
    draw.text((WIDTH - RIGHT + 16, AXIS + 10), "percent", INK, sheet.font)
