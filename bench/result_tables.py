"""Tables in Markdown, as bench/RESULTS.md and bench/DEVICE.md have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

HEADING = "## "  # what a table begins with


def table(title: str, words: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table with its heading, and with words between them unless there are none.

    Raises ValueError if a row has not as many cells as the head.
    """
    cells = [list(row) for row in rows]
    for row in cells:
        if len(row) != len(head):
            raise ValueError(f"{title}: expected {len(head)} cells as the head has, found {len(row)}: {row}")
    lines = [_line(head), "|" + "---|" * len(head), *map(_line, cells)]
    return [HEADING + title, "", *((words, "") if words else ()), *lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def on_a_latent(what: str, size: tuple[int, int], more: str) -> str:
    """The title of a table that is measured on a latent of h x w cells."""
    h, w = size
    return f"{what}, latent {h}x{w}, {more}"


def runs(steps: int, rounds: int, note: str = "") -> str:
    """How long it was measured, and the note of the table."""
    return f"{steps} steps, {rounds} rounds. {note}".rstrip()
