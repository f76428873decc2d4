"""From the maps of single chunks to one map of the latent."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.samplers
import torch
from torch import Tensor

from ..models.self_attention import enlarge
from .frames import images_of_window
from .run import AttentionMap

TILED = (
    "Self-Attention Guidance needs to see where the network looks in the whole picture, but another node cuts the "
    "picture or its attention into tiles. Remove that node (tiled diffusion, HyperTile) from the model."
)


def combine(maps: Sequence[AttentionMap], conds: Sequence[dict], x: Tensor, timestep: Tensor) -> Tensor | None:
    """How much each cell of the latent x (b, c, h, w) is attended in a pass, (b, h, w); None if no cond is active.

    Areas, masks and strengths weigh the maps as the host weighs the predictions, so the order of conds is without
    effect. Where nothing was predicted the map is 0. RuntimeError if the network never saw a cond's whole picture.
    """
    total, weights = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    rest: Tensor | None = None
    active = False
    for cond in sorted(conds, key=lambda cond: "default" in cond):  # defaults share what the others leave
        chunk = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if chunk is None:
            continue
        active = True
        if "default" in cond:
            rest = torch.relu(1 - weights) if rest is None else rest
        h, w, top, left = chunk.area or (*x.shape[-2:], 0, 0)
        mult = chunk.mult[:, 0] if rest is None else rest[:, top : top + h, left : left + w]
        received, seen = _over_windows([found for found in maps if found.chunk == cond["uuid"]], x, (h, w))
        total[:, top : top + h, left : left + w] += received * (mult * seen)
        weights[:, top : top + h, left : left + w] += mult * seen
    if active and not maps:
        raise RuntimeError(TILED)
    return total / weights.clamp_min(1e-37) if active else None


def _over_windows(maps: Sequence[AttentionMap], x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The mean over context windows of a chunk's maps, (b, h, w), and which images have one, (b, 1, 1)."""
    received, counts = x.new_zeros((len(x), *size)), x.new_zeros((len(x), 1, 1))
    for found in maps:
        if found.size != size:
            raise RuntimeError(TILED)
        rows = list(range(len(x))) if found.window is None else images_of_window(found.window, len(found.received))
        received[rows] += enlarge(found.received.to(x), size)
        counts[rows] += 1
    return received / counts.clamp_min(1), (counts > 0).to(x)
