"""A picture of what a scope has noted: the size of every change of the result, and its cosine to that of CFG.

Beneath lies the axis of start_percent and end_percent, with a mark for each call of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...engine.scope import Record

WIDTH, HEIGHT = 960, 740
LEFT, RIGHT, TOP, GAP, BOTTOM = 72, 200, 40, 56, 148
AXIS = HEIGHT - 56  # of percents
MARK = 14  # the height of a call on it
BACKGROUND, GRID, LEAD, INK = "#ffffff", "#e2e2e2", "#b8b8b8", "#333333"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#9a8c00")
TICKS, TENTHS = 4, 10


class Curve(NamedTuple):
    """One method over the calls of the model, with nan for calls in which it did not act."""

    name: str
    norms: Sequence[float]
    cosines: Sequence[float]


class Panel(NamedTuple):
    """A part of the picture: its edges in pixels, and the values at the lower and the upper one."""

    top: int
    bottom: int
    low: float
    high: float

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)


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
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    middle = TOP + round((HEIGHT - TOP - GAP - BOTTOM) * 0.6)
    largest = max((value for curve in drawn for value in curve.norms if not math.isnan(value)), default=1.0)
    norms = Panel(TOP, middle, 0.0, 1.05 * largest or 1.0)
    cosines = Panel(middle + GAP, HEIGHT - BOTTOM, -1.0, 1.0)
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(sigmas) for i in range(len(sigmas))]
    draw.text((LEFT, 10), "size of each change (root mean square)", INK, font)
    draw.text((LEFT, middle + GAP - 24), "cosine to positive - negative", INK, font)
    for panel in (norms, cosines):
        _axes(draw, font, panel)
    for i in range(0, len(xs), max(1, len(xs) // 10)):
        draw.text((xs[i], HEIGHT - BOTTOM + 6), _short(sigmas[i]), INK, font, anchor="ma")
    draw.text((WIDTH - RIGHT + 10, HEIGHT - BOTTOM + 6), "sigma", INK, font)
    _percent_axis(draw, font, xs, record.percents())
    for number, curve in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        _line(draw, xs, curve.norms, norms, colour)
        _line(draw, xs, curve.cosines, cosines, colour)
        y = TOP + 24 * number
        draw.line((WIDTH - RIGHT + 16, y + 9, WIDTH - RIGHT + 40, y + 9), colour, 3)
        draw.text((WIDTH - RIGHT + 48, y), curve.name, INK, font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def _short(sigma: float) -> str:
    return f"{sigma:.0f}" if sigma >= 10 else f"{sigma:.2g}"


def _axes(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, panel: Panel) -> None:
    for tick in range(TICKS + 1):
        value = panel.low + (panel.high - panel.low) * tick / TICKS
        draw.line((LEFT, panel.y(value), WIDTH - RIGHT, panel.y(value)), GRID)
        draw.text((LEFT - 8, panel.y(value)), f"{value:.3g}", INK, font, anchor="rm")


def percent_x(percent: float) -> float:
    """Returns where a percent lies in the picture, in pixels from the left."""
    return LEFT + (WIDTH - LEFT - RIGHT) * percent


def _percent_axis(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, xs: Sequence[float], of_calls: Sequence[float]
) -> None:  # fmt: skip
    """Draws the axis, with a line from each call at `xs` in the panels to its mark."""
    for x, percent in zip(xs, of_calls, strict=True):
        draw.line((x, HEIGHT - BOTTOM + 28, percent_x(percent), AXIS - MARK), LEAD)
    draw.line((percent_x(0), AXIS, percent_x(1), AXIS), INK)
    for percent in of_calls:
        x = round(percent_x(percent))
        draw.rectangle((x - 1, AXIS - MARK, x, AXIS), INK)
    for tenth in range(TENTHS + 1):
        x = percent_x(tenth / TENTHS)
        draw.line((x, AXIS, x, AXIS + 5), INK)
        draw.text((x, AXIS + 10), f"{tenth / TENTHS:g}", INK, font, anchor="ma")
    draw.text((WIDTH - RIGHT + 16, AXIS + 10), "percent", INK, font)


def _line(
    draw: ImageDraw.ImageDraw, xs: Sequence[float], values: Sequence[float], panel: Panel, colour: str
) -> None:  # fmt: skip
    points = [(x, panel.y(value)) for x, value in zip(xs, values, strict=True) if not math.isnan(value)]
    if len(points) > 1:
        draw.line(points, colour, 2, joint="curve")
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
