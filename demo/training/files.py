"""Writes the shipped files: half precision, with the settings of the run as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes weights to a file, floating point as float16. The file appears whole or not at all.

    Raises ValueError if a number does not fit into float16.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    if broken := [name for name, value in content.items() if not torch.isfinite(value.float()).all()]:
        raise ValueError(f"{path.name} was not written: {', '.join(broken[:4])} does not fit into float16")
    part = path.with_suffix(".part")
    save_file(content, part, metadata=dict(metadata))
    os.replace(part, path)
