"""The reason why a sweep does not begin."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LISTED = 40  # names that a person reads to the end


class SweepError(Exception):
    """Something the person at the keyboard can put right. The text says what was found, and what there is."""


def what_there_is(name: str, known: Sequence[str]) -> str:
    """The known names in words, those that resemble `name` alone if there are many."""
    if not known:
        return "there is none"
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if len(known) <= LISTED or not near:
        rest = len(known) - LISTED
        return "there are " + ", ".join(known[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
    return f"there are {', '.join(near)} and {len(known) - len(near)} more"
