"""Computes once what several chunks of a call have in common.

An extra prediction equals the positive or the negative up to the first layer that it changes. The layers before that
run only on the chunks that differ, and their outputs are repeated. The host's own loop over the blocks runs on a view
of the network with stand-ins for these layers. So the host's patches, skips and residuals see all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from .layers.call import NETWORK
from .layers.others import leave_alike
from .rows.chunk import CHUNKS, PER_CHUNK, Chunk, of_chunks
from .rows.groups import GROUPS
from .rows.names import NAMES_BY_NUMBER
from .run import Step
from .unet import ORDER, Depth


def sharing_forward(
    executor: Any, unet: UNetModel, options: Mapping[str, Any], without_layers: Mapping[str, Any], control: Any
) -> Callable[..., Tensor] | None:  # fmt: skip
    """Returns the network's forward in which chunks share layers. None if nothing can be shared, or not safely.

    `without_layers` are the options without our layers. Other packs' patches on shared layers, and their wrappers
    anywhere, may treat chunks by their place in the batch. Then everything is computed. It is too if residuals are not
    known to be equal, if partners take part, for frames of a video, and if chunks may be tiles of a picture.
    """
    chunks, step = options[CHUNKS], options[NETWORK].step
    first_changes = _first_changes(step, chunks)
    if not first_changes or not _is_plain(executor, unet, options):
        return None
    if NAMES_BY_NUMBER in options or len({(chunk.uuid, chunk.label) for chunk in chunks}) < len(chunks):
        return None
    if not leave_alike(without_layers, max(first_changes.values())):
        return None
    if control is not None and not all(uuid in step.controlled for uuid in step.first_changes()):
        return None
    plan = SharingPlan(chunks, step, first_changes)
    return plan.forward(unet) if plan.saves_rows else None


def _is_plain(executor: Any, unet: UNetModel, options: Mapping[str, Any]) -> bool:
    """Whether it is the host's own forward, no partners take part, and the rows are no video."""
    is_hosts = getattr(executor.original, "__func__", None) is UNetModel._forward
    return is_hosts and GROUPS not in options and not unet.use_temporal_resblocks


def _first_changes(step: Step | None, chunks: Sequence[Chunk]) -> dict[UUID, Depth]:
    """Returns the depth at which each chunk that repeats another one first differs from it."""
    if step is None:
        return {}
    uuids = {chunk.uuid for chunk in chunks}
    return {uuid: depth for uuid, depth in step.first_changes().items() if uuid in uuids}


class SharingPlan:
    """Which chunks are computed at each depth of a call, and which chunk's output the others take."""

    def __init__(self, chunks: Sequence[Chunk], step: Step, first_changes: Mapping[UUID, Depth]) -> None:
        origins = [step.origin(chunk.uuid, chunk.label) for chunk in chunks]
        changes = [first_changes.get(chunk.uuid) for chunk in chunks]
        self.repeated = [self._repeated_by(i, origins, changes) for i in range(len(chunks))]
        self.until = [changes[i] if repeated != i else None for i, repeated in enumerate(self.repeated)]

    @staticmethod
    def _repeated_by(chunk: int, origins: Sequence[Any], changes: Sequence[Depth | None]) -> int:
        """Returns the chunk that this one equals up to its first change: the plain one, or the last to change."""
        alike = [i for i, origin in enumerate(origins) if origin == origins[chunk]]
        plain = [i for i in alike if changes[i] is None]
        if changes[chunk] is None or len(plain) > 1:
            return chunk
        return plain[0] if plain else max(alike, key=lambda i: (changes[i], -i))

    @property
    def saves_rows(self) -> bool:
        """Whether any chunk is not computed in some layer."""
        return any(depth is not None and depth > Depth(0, 0, 0) for depth in self.until)

    def forward(self, unet: UNetModel) -> Callable[..., Tensor]:
        """Returns the host's forward of a view of the network."""
        view = object.__new__(type(unet))
        view.__dict__.update(unet.__dict__)  # parts in an instance's own dict are found before its modules
        for name, block in (("input_blocks", "input"), ("output_blocks", "output")):
            blocks = getattr(unet, name)
            view.__dict__[name] = [self._narrowed(layers, block, number) for number, layers in enumerate(blocks)]
        if unet.middle_block is not None:
            view.__dict__["middle_block"] = self._narrowed(unet.middle_block, "middle", 0)
        return type(unet)._forward.__get__(view)

    def _narrowed(self, layers: Sequence[nn.Module], block: str, number: int) -> Sequence[Any]:
        narrowed = []
        for layer, depth in _with_depths(layers, ORDER[block], number):
            kept = [i for i, until in enumerate(self.until) if until is None or depth >= until]
            narrowed.append(layer if len(kept) == len(self.until) else _OnSomeChunks(layer, kept, self._sources(kept)))
        return narrowed

    def _sources(self, kept: Sequence[int]) -> list[int]:
        """Returns for each chunk the place, among the kept ones, of the chunk that it equals here."""
        return [kept.index(i if i in kept else self.repeated[i]) for i in range(len(self.until))]


def _with_depths(layers: Sequence[nn.Module], block: int, number: int) -> Iterator[tuple[nn.Module, Depth]]:
    inside = 0
    for layer in layers:
        inside = inside or int(isinstance(layer, SpatialTransformer))
        yield layer, Depth(block, number, inside)


@dataclass(frozen=True)
class _OnSomeChunks:
    """A layer that runs on some chunks and repeats their outputs for the others. The host takes it for the layer."""

    layer: nn.Module
    kept: Sequence[int]
    sources: Sequence[int]

    @property
    def __class__(self) -> type:
        return type(self.layer)

    def __call__(self, x: Tensor, *arguments: Any, **kwargs: Any) -> Tensor:
        count = len(self.sources)
        some, *rest = of_chunks([x, *arguments], self.kept, count, len(x))
        out = self.layer(some, *rest, **kwargs)
        for value, of_some in zip(arguments, rest, strict=True):
            if isinstance(value, dict):  # the host notes in its options how far it is
                value.update({key: item for key, item in of_some.items() if key not in PER_CHUNK})
        parts = out.chunk(len(self.kept))
        return torch.cat([parts[i] for i in self.sources])
