"""What other packs have put into a call of the network: patches, slots, and wrappers around it.

Chunks may share layers only before the place at which another pack first acts (shared_rows.py). They are in one call
only if other packs act on all chunks of a call alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import nn

from ..entries import KEY
from ..sites import ORDER, Depth

AROUND_NETWORK = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
AROUND_TEXT = ("attn2_patch", "attn2_output_patch")
OUTPUT_PATCHES = ("attn1_output_patch", "attn2_output_patch")
ON_ALL_ROWS = ("comfy_extras/nodes_hypertile.py", "comfy_extras/nodes_tomesd.py")  # files of the host
BY_LABEL = "Attn2Replace"  # slots of this class, in packs for image prompts, ask the label of each chunk
# Where patches first act. Kinds that are not listed may act from the first block on.
FIRST_DEPTHS = {"middle_block_after_patch": Depth(1, 1, 0), "output_block_patch": Depth(2, 0, 0)}


def leave_alike(options: Mapping[str, Any], until: Depth) -> bool:
    """Whether chunks that are alike stay so up to a depth, whatever other packs do.

    `options` are those without our layers. Wrappers around the network may tell chunks apart anywhere.
    """
    around = [options.get("wrappers", {}).get(kind, {}) for kind in AROUND_NETWORK]
    if any(wrappers and key != KEY for by_key in around for key, wrappers in by_key.items()):
        return False
    patches = options.get("patches", {})
    first = [FIRST_DEPTHS.get(kind, Depth(0, 0, 0)) for kind in patches if patches[kind] and kind != KEY]
    slots = [place for of_kind in options.get("patches_replace", {}).values() for place in of_kind]
    first += [Depth(ORDER.get(block, 0), number, 1) for block, number, *_ in slots]
    return all(depth >= until for depth in first)


def treat_chunks_apart(options: Mapping[str, Any], conds: Iterable[Mapping[str, Any]], network: nn.Module) -> bool:
    """Whether other packs may act on the first positive of a call alone, or know no call with two.

    Packs for regional prompts and a node of ComfyUI itself do so, by patches on the output of attentions, in the slots
    of text attentions, or by another forward of the network. Nothing tells what they do, so only those that are known
    to act on all rows alike do not count. `options` are those of a model, without our layers.
    """
    added = _added_options(options, conds)
    patches = [of_one.get("patches", {}) for of_one in added]
    acting = [patch for of_one in patches for kind in OUTPUT_PATCHES for patch in of_one.get(kind, ())]
    acting += [slot for of_one in added for slot in of_one.get("patches_replace", {}).get("attn2", {}).values()]
    return "forward" in vars(getattr(network, "_orig_mod", network)) or not all(map(_acts_on_all_rows, acting))


def may_add_rows(options: Mapping[str, Any], conds: Iterable[Mapping[str, Any]]) -> bool:
    """Whether other packs may add rows to text attentions and take them out behind, as for regional prompts."""
    lists = [of_one.get("patches", {}) for of_one in _added_options(options, conds)]
    return all(any(patches.get(kind) for patches in lists) for kind in AROUND_TEXT)


def _added_options(options: Mapping[str, Any], conds: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the options of a model, and those that hooks of the conds bring."""
    hooks = [hook for cond in conds for hook in getattr(cond.get("hooks"), "hooks", ())]
    return [options, *(getattr(hook, "transformers_dict", None) or {} for hook in hooks)]


def _acts_on_all_rows(patch: Any) -> bool:
    code = getattr(patch, "__code__", None)
    if code is None:
        return type(patch).__name__ == BY_LABEL
    return code.co_filename.replace("\\", "/").endswith(ON_ALL_ROWS)
