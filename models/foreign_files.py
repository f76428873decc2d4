"""Files that are not of the kind that a loader takes, and names that training frameworks have put before tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

SHOWN = 4  # names in an error


def without_wrapping(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Only tensors, and without these prefixes of a training framework, however deep."""
    found = {}
    for key, value in weights.items():
        while key.startswith(prefixes):
            key = key.split(".", 1)[1]
        if isinstance(value, Tensor):
            found[key] = value
    return found


def kind_among(weights: Mapping[str, Tensor], patterns: Mapping[str, str]) -> str | None:
    """The first kind of which a name in the file fits the pattern."""
    return next(
        (kind for kind, pattern in patterns.items() if any(re.fullmatch(pattern, key) for key in weights)), None
    )


def few(names: Iterable[str]) -> str:
    """The first names for an error."""
    names = list(names)
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
