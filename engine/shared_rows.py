"""Computes once what several chunks of a call have in common.

An extra prediction equals the positive or the negative up to the first layer that it changes. The layers before that
run only on the chunks that differ, and their outputs are repeated. The host's own loop over the blocks runs on a view
of the network with stand-ins for these layers. So the host's patches, skips and residuals see all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from .rows.chunk import CHUNKS, PER_CHUNK, of_chunks
from .rows.groups import GROUPS
from .sharing import SharingPlan, sharing_plan
from .sites import ORDER, Depth

# Numbers in the features of one chunk at full size. With 2,592 of them the copies of shared outputs cost more than
# the rows that they save, and with 8,192 less, on a CPU (bench/sharing.py).
LEAST_SHARED = 4096


def sharing_forward(
    executor: Any, unet: UNetModel, options: Mapping[str, Any], without_layers: Mapping[str, Any], x: Tensor,
    control: Any,
) -> Callable[..., Tensor] | None:  # fmt: skip
    """Returns the network's forward in which chunks share layers. None if nothing can be shared, or not safely.

    `x` (rows, c, h, w) is what the network is given. Partners and frames of a video share nothing, and neither do
    pictures so small that it would take longer. The other conditions are those of sharing.py.
    """
    if not _is_plain(executor, unet, options) or not _saves_time(unet, x, len(options[CHUNKS])):
        return None
    plan = sharing_plan(options, without_layers, control)
    return None if plan is None else _view(unet, plan)


def _is_plain(executor: Any, unet: UNetModel, options: Mapping[str, Any]) -> bool:
    """Whether it is the host's own forward, no partners take part, and the rows are no video."""
    is_hosts = getattr(executor.original, "__func__", None) is UNetModel._forward
    return is_hosts and GROUPS not in options and not unet.use_temporal_resblocks


def _saves_time(unet: UNetModel, x: Tensor, chunks: int) -> bool:
    rows, _, h, w = x.shape
    return rows // chunks * h * w * unet.model_channels >= LEAST_SHARED


def _view(unet: UNetModel, plan: SharingPlan) -> Callable[..., Tensor]:
    """Returns the host's forward of a view of the network."""
    view = object.__new__(type(unet))
    view.__dict__.update(unet.__dict__)  # parts in an instance's own dict are found before its modules
    for name, block in (("input_blocks", "input"), ("output_blocks", "output")):
        blocks = getattr(unet, name)
        view.__dict__[name] = [_narrowed(plan, layers, block, number) for number, layers in enumerate(blocks)]
    if unet.middle_block is not None:
        view.__dict__["middle_block"] = _narrowed(plan, unet.middle_block, "middle", 0)
    return type(unet)._forward.__get__(view)


def _narrowed(plan: SharingPlan, layers: Sequence[nn.Module], block: str, number: int) -> Sequence[Any]:
    narrowed = []
    for layer, depth in _with_depths(layers, ORDER[block], number):
        phase = next((phase for phase in plan.phases if depth < phase.until), None)
        narrowed.append(layer if phase is None else _OnSomeChunks(layer, phase.kept, phase.sources))
    return narrowed


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
