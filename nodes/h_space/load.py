"""Reads directions in h-space from files, and writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...engine.loading import check_finite, load_network, read_file, read_metadata
from ...models.h_space.files import DH, SIGMAS, BlockFile, parse_h_space
from .direction import BlockDirection, HDirection, StoredDirection


def load_direction(path: Path) -> HDirection:
    """Returns the direction of a file. Raises ValueError if the file holds something else."""
    name = path.name
    weights = {key: value for key, value in read_file(path).items() if isinstance(value, torch.Tensor)}
    check_finite(weights, name)
    parts = parse_h_space(weights, name)
    if isinstance(parts, BlockFile):
        return _block_direction(parts, name)
    return StoredDirection(name, parts, read_metadata(path))


def _block_direction(file: BlockFile, name: str) -> BlockDirection:
    def make(operations: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        return file.make(file.channels, file.time, operations, device, dtype)

    return BlockDirection(name, load_network(make, file.weights, name), file.channels, file.time)


def save_direction(direction: HDirection, path: Path) -> None:
    """Writes a captured direction to a safetensors file. Raises ValueError if the direction is of another kind."""
    if not isinstance(direction, StoredDirection):
        raise ValueError(
            f"Only a captured direction can be saved, but {direction.name} is made anew at each step. Put Capture "
            f"H-Space Direction before the save node. A delta block is a file already."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {DH: direction.directions.dh.contiguous(), SIGMAS: torch.tensor(direction.directions.sigmas)}
    save_file(content, path, dict(direction.metadata))
