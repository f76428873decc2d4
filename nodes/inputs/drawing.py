"""Curves on axes, as pictures: what Guidance Plot and Asyrp Range are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH = 960
LEFT, RIGHT, TOP = 72, 200, 40
BACKGROUND, GRID, INK = "#ffffff", "#e2e2e2", "#333333"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#9a8c00")
TICKS = 4


class Panel(NamedTuple):
    """A part of the picture: its edges in pixels, and the values at the lower and the upper one."""

    top: int
    bottom: int
    low: float
    high: float

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)


class Sheet(NamedTuple):
    """An empty picture to draw on."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    font: ImageFont.ImageFont

    def picture(self) -> Tensor:
        """Returns what was drawn as a picture (1, h, w, 3) in 0..1."""
        return torch.from_numpy(np.asarray(self.image, dtype=np.float32) / 255)[None]

    def axes(self, panel: Panel) -> None:
        """Draws the lines of a panel's values, with their numbers."""
        for tick in range(TICKS + 1):
            value = panel.low + (panel.high - panel.low) * tick / TICKS
            self.draw.line((LEFT, panel.y(value), WIDTH - RIGHT, panel.y(value)), GRID)
            self.draw.text((LEFT - 8, panel.y(value)), f"{value:.3g}", INK, self.font, anchor="rm")

    def curve(self, xs: Sequence[float], values: Sequence[float], panel: Panel, colour: str) -> None:
        """Draws a line with its points, and leaves out those that are nan."""
        points = [(x, panel.y(value)) for x, value in zip(xs, values, strict=True) if not math.isnan(value)]
        if len(points) > 1:
            self.draw.line(points, colour, 2, joint="curve")
        for x, y in points:
            self.draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)

    def legend(self, number: int, name: str, colour: str) -> None:
        """Names a curve on the right, under the names before it."""
        y = TOP + 24 * number
        self.draw.line((WIDTH - RIGHT + 16, y + 9, WIDTH - RIGHT + 40, y + 9), colour, 3)
        self.draw.text((WIDTH - RIGHT + 48, y), name, INK, self.font)


def empty_sheet(height: int) -> Sheet:
    """Returns a white picture of the width that all plots have."""
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    return Sheet(image, ImageDraw.Draw(image), ImageFont.load_default(15))


def percent_x(percent: float) -> float:
    """Returns where a percent of the run lies in a picture, in pixels from the left."""
    return LEFT + (WIDTH - LEFT - RIGHT) * percent


def short_sigma(sigma: float) -> str:
    """Returns a noise level as a few digits."""
    return f"{sigma:.0f}" if sigma >= 10 else f"{sigma:.2g}"
