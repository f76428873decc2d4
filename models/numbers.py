"""Reads the numbers that people write, and names one that all models share."""

from __future__ import annotations

import math

CELL = 8  # pixels per cell of a latent


def finite(text: str) -> float:
    """The number of a text.

    Raises ValueError if the text is not a number, or if it is nan or inf.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number
