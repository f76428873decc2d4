"""Tells a user which kind of file was chosen, and removes the prefixes that training frameworks put before names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

FOUR_BITS = getattr(torch, "float4_e2m1fn_x2", None)  # torch 2.8 and newer
QUANTISED = {  # what keeps numbers packed -> names of tensors that only such files have
    "by ComfyUI (comfy_quant)": r"(.+\.)?comfy_quant",
    "by ComfyUI (scaled fp8)": r"(.+\.)?(scaled_fp8|scale_weight)",
    "by bitsandbytes, four bits": r".+\.(quant_state\.bitsandbytes__\w+|absmax|quant_map)",
    "by bitsandbytes, eight bits": r".+\.SCB",
    "by GPTQ or AWQ": r".+\.qweight",
}
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


def quantised_by(weights: Mapping[str, object]) -> str | None:
    """Returns by what a file's numbers are packed, so that they are not those of its weights. None if they are not."""
    if FOUR_BITS is not None and any(getattr(value, "dtype", None) is FOUR_BITS for value in weights.values()):
        return "as four-bit numbers (float4_e2m1fn_x2)"
    return kind_among(weights, QUANTISED)


def few(names: Iterable[str]) -> str:
    """Returns the first names in one line, and how many more there are, for an error."""
    names = list(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = (name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in map(str, names[:SHOWN]))
    return f"{', '.join(shown)}{rest}"
