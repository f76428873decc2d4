"""UniCon (2410.11439): matrices of several LoRA as one, so that one product computes them together.

The matrices are stacked once, when a file is loaded. LoRA of a smaller rank get rows and columns of zeros, which add
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
ATTENTIONS = ("attn1", "attn2")


class LowRank(NamedTuple):
    """Sizes of one LoRA: inputs, rank, outputs."""

    inputs: int
    rank: int
    outputs: int


class Stack(NamedTuple):
    """LoRA of projections that read the same tensor, and their sizes with the largest rank of all."""

    projections: tuple[str, ...]
    sizes: LowRank

    @property
    def name(self) -> str:
        """Its name in the network."""
        return "_".join(self.projections)


class AttentionPlace(NamedTuple):
    """The LoRA of one attention: the beginning of their names, their sizes by projection, and whether text enters."""

    stem: str
    loras: Sequence[LowRank]
    of_text: bool


def stacks_of(loras: Sequence[LowRank], of_text: bool) -> list[Stack]:
    """Returns the stacks of one attention, in the order of PROJECTIONS. LoRA of different sizes are stacked apart."""

    def kind(of_one: tuple[str, LowRank]) -> tuple:
        name, sizes = of_one
        return name == "to_out", of_text and name == "to_q", sizes.inputs, sizes.outputs

    stacks = []
    for _, group in groupby(zip(PROJECTIONS, loras, strict=True), kind):
        names, sizes = zip(*group, strict=True)
        stacks.append(Stack(names, sizes[0]._replace(rank=max(of_one.rank for of_one in sizes))))
    return stacks


def stacked(weights: Mapping[str, Tensor], attentions: Iterable[AttentionPlace]) -> dict[str, Tensor]:
    """Returns the weights by the names of the network, of the weights by the names of single LoRA."""
    found = dict(weights)
    for place in attentions:
        for stack in stacks_of(place.loras, place.of_text):
            ends = ([found.pop(f"{place.stem}.{p}.{end}.weight") for p in stack.projections] for end in ("down", "up"))
            downs, ups = map(_in_one_type, ends)
            rank, stem = stack.sizes.rank, f"{place.stem}.{stack.name}"
            found[f"{stem}.down.weight"] = _joined([_padded(down, 0, rank) for down in downs])
            found[f"{stem}.up.weight"] = _joined([_padded(up, 1, rank) for up in ups])[..., None]
    return found


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    """Returns the rows of all matrices. A single matrix is not copied."""
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


def _padded(matrix: Tensor, axis: int, rank: int) -> Tensor:
    missing = rank - matrix.shape[axis]
    if not missing:
        return matrix
    shape = list(matrix.shape)
    shape[axis] = missing
    return torch.cat([matrix, torch.zeros(shape, dtype=matrix.dtype, device=matrix.device)], axis)


def _in_one_type(matrices: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns matrices of several types in a type that holds them all. Numbers of 8 bits count as bfloat16."""
    dtypes = {matrix.dtype for matrix in matrices}
    if len(dtypes) == 1:
        return matrices
    wide = reduce(torch.promote_types, (dtype if dtype.itemsize > 1 else torch.bfloat16 for dtype in dtypes))
    return [matrix.to(wide) for matrix in matrices]
