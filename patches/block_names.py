"""What diffusers calls the transformer blocks of a UNet."""

from __future__ import annotations

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from torch import nn

from .sites import Transformer, find_transformers


def block_names(unet: UNetModel) -> dict[str, Transformer]:
    """All transformer blocks in execution order, e.g. by down_blocks.1.attentions.0.transformer_blocks.0.

    Read from the blocks themselves: the host's own table takes it that all levels have as many blocks as the first.
    """
    places = {
        "input": _places(unet.input_blocks, Downsample, "down_blocks"),
        "middle": ["mid_block.attentions.0"],
        "output": _places(unet.output_blocks, Upsample, "up_blocks"),
    }
    return {
        f"{places[block.block][block.number]}.transformer_blocks.{block.index}": block
        for block in find_transformers(unet)
    }


def _places(blocks: nn.ModuleList, turn: type[nn.Module], name: str) -> list[str]:
    """The name of the attention that each block would have; a level ends with the layer that changes the size."""
    places, level, place = [], 0, 0
    for block in blocks:
        places.append(f"{name}.{level}.attentions.{place}")
        has_attention = any(hasattr(layer, "transformer_blocks") for layer in block)
        place += has_attention
        if any(isinstance(layer, turn) for layer in block):
            level, place = level + 1, 0
    return places
