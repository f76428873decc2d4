"""Asyrp (2210.10960): files of h-space directions, known by their tensors: delta blocks and saved directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .delta_block import GROUPS, DDPMBlock, ImprovedBlock

Block = type[DDPMBlock] | type[ImprovedBlock]
TRAINING_STATE = ("optimizer", "scheduler")  # left in the file by the authors' training
BLOCK = "0."  # the first of the file's blocks; released files have one
TIMESTEPS = 1000
BETAS = (1e-4, 0.02)  # of the authors' models, linear
DH, SIGMAS = "dh", "sigmas"


class BlockKind(NamedTuple):
    """A layout of delta blocks. The tensor `first` tells the channels, `time` the width of the time embedding."""

    make: Block
    first: str
    time: str


KINDS = (
    BlockKind(DDPMBlock, "conv1.weight", "temb_proj.weight"),
    BlockKind(ImprovedBlock, "in_layers.2.weight", "emb_layers.1.weight"),
)


@dataclass(frozen=True, eq=False)
class BlockFile:
    """The weights of one delta block. `time` is None if the block does not see the time."""

    make: Block
    channels: int
    time: int | None
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions (t, c, h, w), or pooled ones (t, c, 1, 1), for t falling noise levels.

    A single direction is for all noise levels.
    """

    dh: Tensor
    sigmas: tuple[float, ...]


def parse_h_space(weights: Mapping[str, Tensor], name: str) -> BlockFile | Directions:
    """The delta block or the directions in the tensors of a file called `name`.

    Raises ValueError if the file holds neither, or if the shapes do not fit together.
    """
    if DH in weights or SIGMAS in weights:
        return _saved(weights, name)
    if weights and all(key.isdecimal() for key in weights):
        return _by_timestep(weights, name)
    weights = {key: value for key, value in weights.items() if key.split(".")[0] not in TRAINING_STATE}
    blocks = {key.split(".")[0] for key in weights if key.split(".")[0].isdecimal()}
    if len(blocks) > 1:
        raise ValueError(
            f"{name} should hold one delta block but holds {len(blocks)}. Save them apart, one node for each."
        )
    inner = {key.removeprefix(BLOCK): value for key, value in weights.items()}
    kind = next((kind for kind in KINDS if kind.first in inner), None)
    if kind is None:
        names = ", ".join(list(weights)[:4]) or "nothing"
        raise ValueError(
            f"{name} should hold an h-space direction (a delta block of Asyrp or a saved direction), but holds "
            f"{names}. Choose another file, or capture a direction."
        )
    return _block(kind, inner, name)


def _block(kind: BlockKind, weights: Mapping[str, Tensor], name: str) -> BlockFile:
    first, time = weights[kind.first], weights.get(kind.time)
    if first.ndim != 4 or len(first) % GROUPS:
        raise ValueError(
            f"{name}: {kind.first} should be (channels, channels, 1, 1) with a multiple of {GROUPS}, but is "
            f"{tuple(first.shape)}. Choose a delta block."
        )
    if time is not None and time.ndim != 2:
        raise ValueError(f"{name}: {kind.time} should be (channels, width) but is {tuple(time.shape)}. Save it again.")
    return BlockFile(kind.make, len(first), None if time is None else time.shape[1], weights)


def _saved(weights: Mapping[str, Tensor], name: str) -> Directions:
    dh, sigmas = weights.get(DH), weights.get(SIGMAS)
    shapes = [None if value is None else tuple(value.shape) for value in (dh, sigmas)]
    if dh is None or sigmas is None or dh.ndim != 4 or sigmas.shape != dh.shape[:1] or 0 in dh.shape:
        raise ValueError(
            f"{name} should hold dh (steps, channels, h, w) and sigmas (steps,), but they are {shapes[0]} and "
            f"{shapes[1]}. Save the direction again."
        )
    return sort_directions(dh, sigmas, name)


def sort_directions(dh: Tensor, sigmas: Tensor, name: str) -> Directions:
    """The directions dh (t, c, h, w) of sigmas (t,), sorted from the highest noise level to the lowest.

    Raises ValueError if a sigma is negative or not finite.
    """
    if not (torch.isfinite(sigmas).all() and (sigmas >= 0).all()):
        raise ValueError(f"{name}: sigmas should be noise levels, 0 and more, but are not. Save the direction again.")
    order = sigmas.argsort(descending=True)
    return Directions(dh[order].float(), tuple(sigmas[order].tolist()))


def _by_timestep(weights: Mapping[str, Tensor], name: str) -> Directions:
    """The authors' directions without a network: one for each timestep of their schedule, under 0 the mean of all."""
    shapes = {tuple(value.shape) for value in weights.values()}
    rows = {int(key): value.squeeze(0) if value.ndim == 4 else value for key, value in weights.items()}
    rows = {step: value for step, value in rows.items() if value.ndim == 3 and value.numel()}
    if len(shapes) != 1 or len(rows) != len(weights) or max(rows) >= TIMESTEPS:
        raise ValueError(
            f"{name} should hold one direction of the same shape (channels, h, w) for each timestep below {TIMESTEPS}, "
            f"but holds {len(rows)} of {len(weights)} so, in shapes {sorted(shapes)[:4]}. Save it again."
        )
    steps = [step for step in sorted(rows) if step] or [0]
    alpha_bar = torch.cumprod(1 - torch.linspace(*BETAS, TIMESTEPS, dtype=torch.float64), 0)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()[steps].float()
    return sort_directions(torch.stack([rows[step] for step in steps]), sigmas, name)
