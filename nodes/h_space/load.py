"""Directions in h-space from files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...engine.loading import check_finite, load_network, read_file, read_metadata
from ...models.h_space.files import DH, SIGMAS, BlockFile, parse_h_space
from .direction import BlockDirection, HDirection, StoredDirection


def load_direction(path: Path) -> HDirection:
    """ValueError for a file that holds something else."""
    name = path.name
    weights = {key: value for key, value in read_file(path).items() if isinstance(value, torch.Tensor)}
    check_finite(weights, name)
    found = parse_h_space(weights, name)
    if isinstance(found, BlockFile):
        return _block(found, name)
    return StoredDirection(name, found, read_metadata(path))


def _block(file: BlockFile, name: str) -> BlockDirection:
    def make(operations: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        return file.make(file.channels, file.time, operations, device, dtype)

    return BlockDirection(name, load_network(make, file.weights, name), file.channels, file.time)


def save_direction(direction: HDirection, path: Path) -> None:
    """ValueError for a direction that is no tensor of its own."""
    if not isinstance(direction, StoredDirection):
        raise ValueError(
            f"A captured direction can be saved, but {direction.name} is made anew at each step. Put H-Space Direction "
            f"Capture before the save node; a delta block is a file already."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {DH: direction.directions.dh.contiguous(), SIGMAS: torch.tensor(direction.directions.sigmas)}
    save_file(content, path, dict(direction.metadata))
