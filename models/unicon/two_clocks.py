"""UniCon (2410.11439, section 3.3): the schedule of the noise levels of image and condition, as text.

`x 0-1, y 0.3-1` lets the image go through the whole run, and the condition begin at three tenths of it. Both take the
same number of steps, so the shorter section waits. Further segments follow after `;` or on a new line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SEGMENT = re.compile(r"x\s+([\d.]+)\s*-\s*([\d.]+)\s*,\s*y\s+([\d.]+)\s*-\s*([\d.]+)")
EXAMPLE = "x 0-1, y 0-1"


class RunSection(NamedTuple):
    """A section of the run, from `start` to `end`, both 0 to 1."""

    start: float
    end: float

    def indices(self, levels: int) -> tuple[int, int]:
        """The first and the last of `levels` noise levels that lie in the section, rounded as in the official code."""
        return int(self.start * (levels - 1)), int(self.end * (levels - 1))


Segment = tuple[RunSection, ...]  # what image and condition do side by side
LevelNumbers = tuple[int, ...]  # the numbers of the noise levels that they have in one call of the model


def parse_schedule(text: str) -> list[Segment]:
    """The segments of a schedule.

    Raises ValueError if the text is empty or a segment cannot be read.
    """
    segments = []
    for line in re.split(r"[;\n]", text):
        if not line.strip():
            continue
        match = SEGMENT.fullmatch(line.strip())
        try:
            ends = [float(end) for end in match.groups()] if match else []
        except ValueError:
            ends = []
        segment = (RunSection(*ends[:2]), RunSection(*ends[2:])) if ends else None
        if segment is None or any(not 0 <= section.start <= section.end <= 1 for section in segment):
            raise ValueError(
                f"A segment of the schedule should read like '{EXAMPLE}', from 0 (noise) to 1 (finished) and never "
                f"back, but is {line.strip()!r}. Segments are separated by ; or a new line."
            )
        segments.append(segment)
    if not segments:
        raise ValueError(f"The schedule is empty. Write for example '{EXAMPLE}'.")
    return segments


def timetable(segments: list[Segment], levels: int) -> list[LevelNumbers]:
    """The numbers of the noise levels at each call of the model, for a run of `levels` noise levels.

    Raises ValueError if a segment does not begin at the levels at which the one before it ends.
    """
    table: list[LevelNumbers] = []
    for segment in segments:
        sections = [section.indices(levels) for section in segment]
        lengths = [last - first + 1 for first, last in sections]
        count = max(lengths)
        calls = [
            tuple(first + int(length * i / count) for (first, _), length in zip(sections, lengths, strict=True))
            for i in range(count)
        ]
        if table and calls[0] != table[-1]:
            raise ValueError(
                f"Each segment of the schedule should begin where the one before it ends. Counted from 0, one ends at "
                f"step {_listed(table[-1])}, and the next begins at {_listed(calls[0])}."
            )
        table += calls[1:] if table else calls
    return table


def _listed(numbers: LevelNumbers) -> str:
    return " and ".join(f"{number} of {name}" for name, number in zip("xyz", numbers, strict=False))
