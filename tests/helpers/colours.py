"""Distances of colours in CIE Lab, as most people see them and as colour-blind people do, and contrast by WCAG 2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

SCRIPT = Path(__file__).parents[2] / "web" / "socket_colours.js"
TO_XYZ = np.array([  # of linear sRGB, by IEC 61966-2-1
    [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
WHITE = TO_XYZ.sum(1)
# What people without the cones for green or for red see, of linear sRGB: Machado, Oliveira and Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1.
DEUTERANOPIA = np.array([
    [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
])  # fmt: skip
PROTANOPIA = np.array([
    [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
])  # fmt: skip
SIGHTS = {"all cones": np.eye(3), "deuteranopia": DEUTERANOPIA, "protanopia": PROTANOPIA}


class Distance(NamedTuple):
    """Between two colours: with all cones, and the smaller one of the two kinds of colour-blindness."""

    seen: float
    colour_blind: float


def ours() -> dict[str, str]:
    """The colour of each socket type of this pack, as the editor's script has them."""
    return dict(re.findall(r'^ {4}([A-Z_]+): "(#[0-9a-f]{6})",$', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))


def distance(first: str, second: str) -> Distance:
    """How far two colours are apart in CIE Lab (1976)."""
    seen, *blind = (float(np.linalg.norm(lab(first, sight) - lab(second, sight))) for sight in SIGHTS.values())
    return Distance(seen, min(blind))


def contrast(first: str, second: str) -> float:
    """The contrast of WCAG 2, from 1 to 21."""
    darker, lighter = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (first, second))
    return (lighter + 0.05) / (darker + 0.05)


def too_near(
    colours: Mapping[str, str], others: Mapping[str, str], least: Distance
) -> Iterator[tuple[str, str, Distance]]:
    """The pairs of a colour and another one that are less far apart, by their names."""
    for name, colour in colours.items():
        for other, its_colour in others.items():
            found = distance(colour, its_colour)
            if name != other and (found.seen < least.seen or found.colour_blind < least.colour_blind):
                yield name, other, found


def lab(colour: str, sight: Iterable = SIGHTS["all cones"]) -> np.ndarray:
    """L, a and b (3) of a colour like #1a2b3c, after `sight` (3, 3) has changed it."""
    ratio = TO_XYZ @ np.clip(np.asarray(sight) @ linear(colour), 0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def linear(colour: str) -> np.ndarray:
    """Linear red, green and blue (3) from 0 to 1."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
