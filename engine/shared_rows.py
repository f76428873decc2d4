"""What several chunks of a call have in common is computed once.

An extra prediction is the positive's, or the negative's, up to the first layer that it changes. The layers before that
run on the rows that differ, and their answers are repeated. The host's own loop over the blocks runs as ever, round a
view of the network in which those layers are narrower: its patches, skips and residuals see all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .entries import KEY
from .layers.call import NETWORK
from .rows.chunk import CHUNKS, PER_CHUNK, Chunk, of_chunks
from .rows.groups import GROUPS
from .run import Step
from .unet import ORDER, Depth

AROUND_NETWORK = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
# Where other packs' patches first act that come later than in the first block.
SEEN_FROM = {"middle_block_after_patch": Depth(1, 1, 0), "output_block_patch": Depth(2, 0, 0)}


def sharing_forward(
    executor: Any, unet: UNetModel, options: Mapping[str, Any], foreign: Mapping[str, Any], control: Any
) -> Callable[..., Tensor] | None:  # fmt: skip
    """The network's forward in which chunks share layers; None where nothing can be shared, or not safely.

    `foreign` are the options without our layers. Other packs' patches where layers are shared, and wrappers anywhere,
    which may treat chunks by their place in the batch, residuals that are not known to be equal, partners' rows and
    frames of a video are reasons to compute everything.
    """
    chunks, step = options[CHUNKS], options[NETWORK].step
    first_changes = _first_changes(step, chunks)
    if not first_changes or not _is_plain(executor, unet, options):
        return None
    if any(seen < max(first_changes.values()) for seen in _seen_by_others(foreign)):
        return None
    if control is not None and not all(chunk in step.controlled for chunk in step.twins):
        return None
    plan = SharingPlan(chunks, step, first_changes)
    return plan.forward(unet) if plan.saves_rows else None


def _seen_by_others(foreign: Mapping[str, Any]) -> Iterator[Depth]:
    """Where other packs' patches act, at the earliest."""
    for kind, patches in foreign.get("patches", {}).items():
        if patches and kind != KEY:  # ours are networks to load
            yield SEEN_FROM.get(kind, Depth(0, 0, 0))
    for slots in foreign.get("patches_replace", {}).values():
        for block, number, *_ in slots:
            yield Depth(ORDER.get(block, 0), number, 1)


def _is_plain(executor: Any, unet: UNetModel, options: Mapping[str, Any]) -> bool:
    """Whether the host calls its own forward with nobody else around it, and rows are chunks of pictures."""
    is_hosts = getattr(executor.original, "__func__", None) is UNetModel._forward
    around = [options.get("wrappers", {}).get(kind, {}) for kind in AROUND_NETWORK]
    others = [key for by_key in around for key, wrappers in by_key.items() if wrappers and key != KEY]
    return is_hosts and not others and GROUPS not in options and not unet.use_temporal_resblocks


def _first_changes(step: Step | None, chunks: Sequence[Chunk]) -> dict[UUID, Depth]:
    """Of each chunk of this call that repeats another one, where it first differs."""
    if step is None:
        return {}
    return {chunk.uuid: step.first_changes[chunk.uuid] for chunk in chunks if chunk.uuid in step.first_changes}


class SharingPlan:
    """Which chunks are computed at each depth of a call."""

    def __init__(self, chunks: Sequence[Chunk], step: Step, first_changes: Mapping[UUID, Depth]) -> None:
        origins = [step.origin(chunk.uuid, chunk.label) for chunk in chunks]
        changes = [first_changes.get(chunk.uuid) for chunk in chunks]
        self.model_of = [self._representative(i, origins, changes) for i in range(len(chunks))]
        self.until = [changes[i] if model != i else None for i, model in enumerate(self.model_of)]

    @staticmethod
    def _representative(chunk: int, origins: Sequence[Any], changes: Sequence[Depth | None]) -> int:
        """The chunk that this one equals up to its first change: the plain one, or that which changes last."""
        alike = [i for i, origin in enumerate(origins) if origin == origins[chunk]]
        plain = [i for i in alike if changes[i] is None]
        if changes[chunk] is None or len(plain) > 1:
            return chunk
        return plain[0] if plain else max(alike, key=lambda i: (changes[i], -i))

    @property
    def saves_rows(self) -> bool:
        return any(depth is not None and depth > Depth(0, 0, 0) for depth in self.until)

    def forward(self, unet: UNetModel) -> Callable[..., Tensor]:
        """The host's forward of a view of the network."""
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
            narrowed.append(layer if len(kept) == len(self.until) else _OnFewChunks(layer, kept, self._sources(kept)))
        return narrowed

    def _sources(self, kept: Sequence[int]) -> list[int]:
        """Of each chunk, where among the kept ones that is which it equals."""
        return [kept.index(i if i in kept else self.model_of[i]) for i in range(len(self.until))]


def _with_depths(layers: Sequence[nn.Module], block: int, number: int) -> Iterator[tuple[nn.Module, Depth]]:
    inside = 0
    for layer in layers:
        inside = inside or int(isinstance(layer, SpatialTransformer))
        yield layer, Depth(block, number, inside)


@dataclass(frozen=True)
class _OnFewChunks:
    """A layer that is run on some chunks of its input and answers for all; the host takes it for the layer itself."""

    layer: nn.Module
    kept: Sequence[int]
    sources: Sequence[int]

    @property
    def __class__(self) -> type:
        return type(self.layer)

    def __call__(self, x: Tensor, *arguments: Any, **kwargs: Any) -> Tensor:
        count = len(self.sources)
        few, *rest = (of_chunks(value, self.kept, count, len(x)) for value in (x, *arguments))
        out = self.layer(few, *rest, **kwargs)
        for value, narrow in zip(arguments, rest, strict=True):
            if isinstance(value, dict):  # the host notes in its options how far it is
                value.update({key: item for key, item in narrow.items() if key not in PER_CHUNK})
        parts = out.chunk(len(self.kept))
        return torch.cat([parts[i] for i in self.sources])
