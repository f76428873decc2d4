"""What `auto` stands for in the inputs `layers`: the published layers, or the middle of the network.

Nobody has measured which layers are best on most transformers. The help pages say of which it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from comfy.model_patcher import ModelPatcher

from ...engine.dit.families import Family
from ...engine.find import dit_family
from ...engine.sites import Block, Site
from .layers import LETTERS, parse_layers

Method = Literal["perturbed attention", "smoothed energy", "skipped layers", "shuffled tokens"]
REFINERS: tuple[Block, ...] = ("context", "noise")  # of Lumina2, before text and picture meet
SD3_BLOCKS = 24  # of the models for which layers were published


def chosen_sites(model: ModelPatcher, layers: str, sites: Sequence[Site], method: Method) -> tuple[Site, ...]:
    """Returns the sites that the input `layers` names. Raises ValueError if it names none or others."""
    family = dit_family(model)
    return tuple(parse_layers(layers, sites, "m0" if family is None else _auto(family, sites, method)))


def _auto(family: Family, sites: Sequence[Site], method: Method) -> str:
    blocks = list(dict.fromkeys(site[1:3] for site in sites if site.block not in REFINERS))
    if family.name == "SD3":
        is_medium = any(site.index for site in sites)  # 3.5 Medium has blocks with two attentions
        if method == "skipped layers" or (method == "smoothed energy" and is_medium):
            return f"b{_share(7, SD3_BLOCKS, blocks)}-{_share(9, SD3_BLOCKS, blocks)}"  # Stability AI, diffusers
        if method != "shuffled tokens":
            return f"b{_share(13, SD3_BLOCKS, blocks)}"  # diffusers' pipeline of PAG for Stable Diffusion 3
    if method == "skipped layers" and family.name == "LTX-Video":
        return f"b{_share(19, 28, blocks)}"  # Spatiotemporal Skip Guidance, 2411.18664
    if method == "skipped layers" and family.name == "HunyuanVideo":
        return f"d{_share(2, 20, [block for block in blocks if block[0] == 'double'])}"  # 2411.18664 too
    block, number = blocks[len(blocks) // 2]
    return f"{LETTERS[block]}{number}"


def _share(number: int, of: int, blocks: Sequence[tuple[Block, int]]) -> int:
    """Returns the block at the same share of the depth as a block of a network of `of` blocks."""
    return number * len(blocks) // of
