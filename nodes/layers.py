"""The layer notation: `m0`, `u0-u3`, `d2.0-1,u1.4`, `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..patches.sites import Site

LETTERS = {"d": "input", "m": "middle", "u": "output"}
PART = re.compile(
    r"(?P<letter>[dmu])(?P<first>\d+)(?:-(?P=letter)?(?P<last>\d+))?(?:\.(?P<low>\d+)(?:-(?P<high>\d+))?)?"
)


def parse_layers(text: str, sites: Sequence[Site]) -> list[Site]:
    """The sites that a text names, in execution order; ValueError for a wrong text or a layer the model lacks."""
    chosen: set[Site] = set()
    parts = [part.strip() for part in text.lower().split(",") if part.strip()]
    if not parts:
        raise ValueError(f"layers is empty. Name at least one layer, for example m0. {_available(sites)}")
    for part in parts:
        chosen.update(sites if part == "all" else _named(part, sites))
    return [site for site in sites if site in chosen]


def _named(part: str, sites: Sequence[Site]) -> list[Site]:
    match = PART.fullmatch(part.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"layers: {part!r} is not a layer. Write d, m or u and a number (m0), a range (u0-u3), a transformer "
            f"inside (d2.0-1) or all. {_available(sites)}"
        )
    numbers = _block_numbers(LETTERS[match["letter"]], sites)
    found: list[Site] = []
    for position in _range(match["first"], match["last"]):
        block = [
            s for s in sites if position < len(numbers) and s[1:3] == (LETTERS[match["letter"]], numbers[position])
        ]
        wanted = [s for s in block if match["low"] is None or s.index in _range(match["low"], match["high"])]
        missing = not wanted or (match["low"] is not None and len(wanted) < len(_range(match["low"], match["high"])))
        if missing:
            raise ValueError(f"layers: the model has no layer {match['letter']}{position}"
                             f"{_suffix(match['low'], match['high'])} (in {part!r}). {_available(sites)}")  # fmt: skip
        found += wanted
    return found


def _range(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)


def _suffix(low: str | None, high: str | None) -> str:
    return "" if low is None else f".{low}" + (f"-{high}" if high else "")


def _block_numbers(block: str, sites: Sequence[Site]) -> list[int]:
    return sorted({site.number for site in sites if site.block == block})


def _available(sites: Sequence[Site]) -> str:
    names = []
    for letter, block in LETTERS.items():
        for position, number in enumerate(_block_numbers(block, sites)):
            depth = sum(site[1:3] == (block, number) for site in sites)
            names.append(f"{letter}{position}" + (f".0-{depth - 1}" if depth > 1 else ""))
    return f"This model has: {', '.join(names)}."
