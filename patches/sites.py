"""The attentions of the host's UNet, named as the host names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import nn

Kind = Literal["attn1", "attn2"]  # self-attention, text attention
Block = Literal["input", "middle", "output"]


class Site(NamedTuple):
    """One attention of the UNet."""

    kind: Kind
    block: Block
    number: int
    index: int  # transformer inside the block


def find_sites(model: ModelPatcher, kind: Kind) -> list[Site]:
    """All attentions of a kind in execution order; ValueError for a model that is not the host's UNet."""
    unet = model.get_model_object("diffusion_model")
    unet = getattr(unet, "_orig_mod", unet)  # a compiled network hides the one it was made from
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"This node steers the attention layers of a UNet (SD1.x, SD2.x, SDXL and relatives), but the model is "
            f"{type(model.model).__name__} ({type(unet).__name__}), which has none of them. Connect a UNet model or "
            f"remove the node."
        )
    return [
        Site(kind, block, number, index)
        for block, number, module in _blocks(unet)
        for layer in module
        if isinstance(layer, SpatialTransformer)
        for index, transformer in enumerate(layer.transformer_blocks)
        if getattr(transformer, kind) is not None
    ]


def _blocks(unet: UNetModel) -> Iterator[tuple[Block, int, nn.Module]]:
    for number, module in enumerate(unet.input_blocks):
        yield "input", number, module
    if unet.middle_block is not None:
        yield "middle", 0, unet.middle_block
    for number, module in enumerate(unet.output_blocks):
        yield "output", number, module
