"""Tells a user which kind of file was chosen, and removes the prefixes that training frameworks put before names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

SHOWN = 4  # names in an error
LONGEST = 120  # characters of one of them


def without_wrapping(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of `weights`, with these prefixes of a training framework removed from their names, however often."""
    tensors = {}
    for key, value in weights.items():
        while key.startswith(prefixes):
            key = key.split(".", 1)[1]
        if isinstance(value, Tensor):
            tensors[key] = value
    return tensors


def kind_among(weights: Mapping[str, Tensor], patterns: Mapping[str, str]) -> str | None:
    """The first kind whose pattern fits a name in the file, or None."""
    return next(
        (kind for kind, pattern in patterns.items() if any(re.fullmatch(pattern, key) for key in weights)), None
    )


def few(names: Iterable[str]) -> str:
    """Returns the first names in one line, and how many more there are, for an error."""
    names = list(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = (name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in map(str, names[:SHOWN]))
    return f"{', '.join(shown)}{rest}"
