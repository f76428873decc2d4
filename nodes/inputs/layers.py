"""The layer notation: `m0`, `u0-u3`, `d2.0-1,u1.4`, `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...engine.sites import Site

LETTERS = {"d": "input", "m": "middle", "u": "output"}
PART = re.compile(
    r"(?P<letter>[dmu])(?P<first>\d+)(?:-(?P=letter)?(?P<last>\d+))?(?:\.(?P<low>\d+)(?:-(?P<high>\d+))?)?"
)


def parse_layers(text: str, sites: Sequence[Site]) -> list[Site]:
    """Returns the sites that a text names, in execution order.

    Raises ValueError if the text is wrong or names a layer that the model lacks.
    """
    chosen: set[Site] = set()
    parts = [part.strip() for part in text.lower().split(",") if part.strip()]
    if not parts:
        raise ValueError(f"layers is empty. Name at least one layer, for example m0. {_available(sites)}")
    for part in parts:
        chosen.update(sites if part == "all" else _named(part, sites))
    return [site for site in sites if site in chosen]


def _named(part: str, sites: Sequence[Site]) -> list[Site]:
    match = PART.fullmatch(part.replace(" ", ""))
    positions = _range(match["first"], match["last"]) if match else range(0)
    indices = _range(match["low"], match["high"]) if match and match["low"] else None
    if not positions or (indices is not None and not indices):
        raise ValueError(
            f"layers: {part!r} is not a layer. Write d, m or u and a number (m0), a rising range (u0-u3), a "
            f"transformer inside (d2.0-1) or all. {_available(sites)}"
        )
    letter = match["letter"]
    numbers = dict(enumerate(_block_numbers(LETTERS[letter], sites)))
    named: list[Site] = []
    for position in positions:
        block = [site for site in sites if site[1:3] == (LETTERS[letter], numbers.get(position))]
        wanted = block if indices is None else [site for site in block if site.index in indices]
        if not wanted or (indices is not None and len(wanted) < len(indices)):
            raise ValueError(
                f"layers: {part!r} names a layer {letter}{position}{_dotted(indices)} that the model does not have. "
                f"{_available(sites)}"
            )
        named += wanted
    return named


def _range(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)


def _dotted(indices: range | None) -> str:
    return "" if indices is None else f".{indices[0]}" + (f"-{indices[-1]}" if len(indices) > 1 else "")


def _block_numbers(block: str, sites: Sequence[Site]) -> list[int]:
    return sorted({site.number for site in sites if site.block == block})


def _available(sites: Sequence[Site]) -> str:
    names = []
    for letter, block in LETTERS.items():
        for position, number in enumerate(_block_numbers(block, sites)):
            depth = sum(site[1:3] == (block, number) for site in sites)
            names.append(f"{letter}{position}" + (f".0-{depth - 1}" if depth > 1 else ""))
    return f"This model has: {', '.join(names)}."
