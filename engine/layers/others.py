"""What other packs have put into a call of the network: patches, slots, and wrappers around it.

Chunks may share layers only before the place at which another pack first acts (shared_rows.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..entries import KEY
from ..unet import ORDER, Depth

AROUND_NETWORK = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
# Where patches first act. Kinds that are not listed may act from the first block on.
FIRST_DEPTHS = {"middle_block_after_patch": Depth(1, 1, 0), "output_block_patch": Depth(2, 0, 0)}


def depths_of_patches(options: Mapping[str, Any]) -> Iterator[Depth]:
    """Yields the depth from which each kind of patch and each slot acts. `options` are those without our layers."""
    for kind, patches in options.get("patches", {}).items():
        if patches and kind != KEY:  # ours are networks to load
            yield FIRST_DEPTHS.get(kind, Depth(0, 0, 0))
    for slots in options.get("patches_replace", {}).values():
        for block, number, *_ in slots:
            yield Depth(ORDER.get(block, 0), number, 1)


def others_wrap_network(options: Mapping[str, Any]) -> bool:
    """Whether another pack wraps the call of the network."""
    around = [options.get("wrappers", {}).get(kind, {}) for kind in AROUND_NETWORK]
    return any(wrappers and key != KEY for by_key in around for key, wrappers in by_key.items())
