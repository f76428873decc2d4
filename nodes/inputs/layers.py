"""The layer notation: `auto`, `m0`, `u0-u3`, `d2.0-1,u1.4`, `b7-9`, `d0-18,s0`, `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...engine.sites import Site

LETTERS = {
    "input": "d", "middle": "m", "output": "u",  # of a UNet
    "context": "c", "noise": "n", "double": "d", "single": "s", "layer": "b",  # of a transformer
}  # fmt: skip
OF_UNET = ("input", "middle", "output")
PART = re.compile(
    r"(?P<letter>[a-z])(?P<first>\d{1,4})(?:-(?P=letter)?(?P<last>\d{1,4}))?"
    r"(?:\.(?P<low>\d{1,4})(?:-(?P<high>\d{1,4}))?)?"
)


def parse_layers(text: str, sites: Sequence[Site], auto: str = "m0") -> list[Site]:
    """Returns the sites that a text names, in execution order. `auto` is what the word stands for.

    Raises ValueError if the text is wrong or names a layer that the model lacks.
    """
    chosen: set[Site] = set()
    parts = [part.strip() for part in text.lower().split(",") if part.strip()]
    if not parts:
        raise ValueError(f"layers is empty. Name at least one layer, for example auto. {_available(sites)}")
    for part in parts:
        named = auto if part == "auto" else part
        chosen.update(sites if named == "all" else (site for one in named.split(",") for site in _named(one, sites)))
    return [site for site in sites if site in chosen]


def _named(part: str, sites: Sequence[Site]) -> list[Site]:
    match = PART.fullmatch(part.replace(" ", ""))
    positions = _range(match["first"], match["last"]) if match else range(0)
    indices = _range(match["low"], match["high"]) if match and match["low"] else None
    blocks = _blocks(sites)
    example = "m0" if "m" in blocks else f"{next(iter(blocks))}0"
    if not positions or (indices is not None and not indices) or (match and match["letter"] not in LETTERS.values()):
        raise ValueError(
            f"layers: {part!r} is not a layer. Write {_letters(blocks)} and a number ({example}), a rising range "
            f"({example}-1), one attention of a block ({example}.0), all or auto. {_available(sites)}"
        )
    letter = match["letter"]
    block = blocks.get(letter)
    numbers = dict(enumerate(_block_numbers(block, sites)))
    named: list[Site] = []
    for position in positions:
        inside = [site for site in sites if site[1:3] == (block, numbers.get(position))]
        wanted = inside if indices is None else [site for site in inside if site.index in indices]
        if not wanted or (indices is not None and len(wanted) < len(indices)):
            raise ValueError(
                f"layers: {part!r} names a layer {letter}{position}{_dotted(indices)} that the model does not have. "
                f"{_available(sites)}"
            )
        named += wanted
    return named


def _blocks(sites: Sequence[Site]) -> dict[str, str]:
    """Returns the kinds of blocks that a model has, by their letters, in execution order."""
    return {LETTERS[site.block]: site.block for site in sites}


def _letters(blocks: dict[str, str]) -> str:
    *first, last = blocks
    return f"{', '.join(first)} or {last}" if first else last


def _range(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)


def _dotted(indices: range | None) -> str:
    return "" if indices is None else f".{indices[0]}" + (f"-{indices[-1]}" if len(indices) > 1 else "")


def _block_numbers(block: str | None, sites: Sequence[Site]) -> list[int]:
    return sorted({site.number for site in sites if site.block == block})


def _available(sites: Sequence[Site]) -> str:
    """Returns the model's layers in a sentence. Blocks of a transformer that are alike are named together."""
    names: list[str] = []
    for letter, block in _blocks(sites).items():
        counts = [sum(site[1:3] == (block, number) for site in sites) for number in _block_numbers(block, sites)]
        start = 0
        for i, count in enumerate(counts):
            if i + 1 == len(counts) or counts[i + 1] != count or block in OF_UNET:
                first = f"{letter}{start}" + (f"-{i}" if i > start else "")
                names.append(first + (f".0-{count - 1}" if count > 1 else ""))
                start = i + 1
    return f"This model has: {', '.join(names)}. auto chooses for you."
