"""From the maps of single chunks to one map of the latent."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import comfy.samplers
import torch
from torch import Tensor

from ..models.self_attention import enlarge
from .run import AttentionMap


def combine(maps: Sequence[AttentionMap], conds: Sequence[dict], x: Tensor, timestep: Tensor) -> Tensor | None:
    """How much each cell of the latent x (b, c, h, w) is attended, (b, h, w); None where no cond was active.

    Areas, masks and strengths weigh the maps as the host weighs the predictions, so the order of conds is without
    effect. Where nothing was predicted the map is 0.
    """
    total, weights = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    found = False
    for cond in sorted(conds, key=lambda cond: "default" in cond):  # defaults fill what the others leave
        chunk = comfy.samplers.get_area_and_mult(cond, x, timestep)
        image = None if chunk is None else _over_windows(maps, cond["uuid"], x)
        if image is None:
            continue
        found = True
        received, seen = image
        mult = torch.relu(1 - weights) if "default" in cond else chunk.mult[:, 0]
        h, w, top, left = chunk.area or (*x.shape[-2:], 0, 0)
        mult = mult * seen
        total[:, top : top + h, left : left + w] += enlarge(received, (h, w)) * mult
        weights[:, top : top + h, left : left + w] += mult
    return total / weights.clamp_min(1e-37) if found else None


def _over_windows(maps: Sequence[AttentionMap], chunk: UUID, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mean over context windows of a chunk's maps, (b, h, w), and which images have one, (b, 1, 1)."""
    ours = [found for found in maps if found.chunk == chunk]
    if not ours:
        return None
    received = torch.zeros((x.shape[0], *ours[0].received.shape[1:]), device=x.device)
    counts = torch.zeros((x.shape[0], 1, 1), device=x.device)
    for found in ours:
        rows = list(range(x.shape[0])) if found.window is None else _images(found.window, len(found.received))
        received[rows] += found.received.to(x.device)
        counts[rows] += 1
    return received / counts.clamp_min(1), (counts > 0).to(x)


def _images(window: object, rows: int) -> list[int]:
    """Which images of the batch a context window holds; 0.33 may put one more before them, as an anchor."""
    images = list(window.index_list)
    return images if len(images) == rows else [window.causal_anchor_index, *images]
