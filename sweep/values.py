"""Reads what stands behind the equals sign: lists, ranges, and tables of values that belong together."""

from __future__ import annotations

import csv
import io
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError
from .where import Where, find_where

if TYPE_CHECKING:
    from ..demo.client import Graph

NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(?::({NUMBER}))?")  # begin, end and step, as Python counts them
MOST = 1_000_000  # of values, and of prompts


class Axis(NamedTuple):
    """What one --set says: places, and for each step along the axis a text for each of them."""

    wheres: tuple[Where, ...]
    texts: tuple[tuple[str, ...], ...]


def read_axis(graph: Graph, text: str) -> Axis:
    """The axis of WHERE=VALUES, or of @FILE, a CSV whose columns are WHERE.

    Raises SweepError if it cannot be read, or if a place does not exist.
    """
    if text.startswith("@"):
        return read_table(graph, Path(text[1:]))
    label, equals, values = text.partition("=")
    if not equals:
        raise SweepError(f"--set {text} has no values: write WHERE=VALUES, such as KSampler.seed=0:8, or @FILE.csv")
    return Axis((find_where(graph, label.strip()),), tuple((value,) for value in split(values)))


def split(text: str) -> list[str]:
    """The values between commas. One in double quotes may have commas inside."""
    (values,) = csv.reader(io.StringIO(text.replace("\n", " ")), skipinitialspace=True) if text else ([""],)
    return [value.strip() for value in values]


def read_table(graph: Graph, path: Path) -> Axis:
    """The rows of a CSV. Raises SweepError if the file is missing, or if a row is longer or shorter than the first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} cannot be read: {error}") from error
    if len(lines) < 2:
        raise SweepError(
            f"{path} has no row of values: its first line names places, each further line has a value for each"
        )
    head, *rows = lines
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise SweepError(f"{path}, row {number}: {len(head)} values were expected, {len(row)} were found")
    return Axis(tuple(find_where(graph, label.strip()) for label in head), tuple(map(tuple, rows)))


def spread(text: str) -> list[str]:
    """The numbers of a range, or the text itself if it is none. The end does not count, as in Python.

    Raises SweepError if there is no number in the range, or if there are too many.
    """
    if not (found := RANGE.fullmatch(text)):
        return [text]
    begin, end, step = (Decimal(part or "1") for part in found.groups())
    count = math.ceil((end - begin) / step) if step else 0
    if not 0 < count <= MOST:
        what = "no number" if count <= 0 else f"more than {MOST} numbers"
        raise SweepError(f"{text} is a range with {what} in it: it counts from the first to below the second")
    return [str(begin + step * place) for place in range(count)]
