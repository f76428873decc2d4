"""The attentions and transformer blocks of the host's UNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import comfy.model_base
import comfy.supported_models
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample, VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import nn

from .sites import AttentionKind, Block, Site

OF_UNETS = "The method acts on parts that other networks do not have."


class Transformer(NamedTuple):
    """One transformer block of the UNet: its two attentions, and what its text attention was built for."""

    block: Block
    number: int
    index: int
    path: str  # of its module in the network, e.g. input_blocks.1.1.transformer_blocks.0
    width: int  # channels of its queries
    context: int  # channels of the text that it reads

    def site(self, kind: AttentionKind) -> Site:
        return Site(kind, self.block, self.number, self.index)


def find_sites(model: ModelPatcher, kind: AttentionKind, reason: str = OF_UNETS) -> list[Site]:
    """Returns all attentions of a kind in execution order.

    Raises ValueError with the reason, a sentence, if the model has no UNet of the host.
    """
    return [
        Site(kind, block, number, index)
        for block, number, index, _, transformer in _transformers(unet_of(model, reason))
        if getattr(transformer, kind) is not None
    ]


def find_transformers(unet: UNetModel) -> list[Transformer]:
    """Returns all transformer blocks with a text attention, in execution order."""
    return [
        Transformer(block, number, index, path, module.attn2.to_q.out_features, module.attn2.to_k.in_features)
        for block, number, index, path, module in _transformers(unet)
        if module.attn2 is not None
    ]


def attention_at(unet: UNetModel, site: Site) -> nn.Module:
    """Returns the attention of a site."""
    return next(
        getattr(transformer, site.kind) for *place, _, transformer in _transformers(unet) if tuple(place) == site[1:]
    )


def grid_at(unet: UNetModel, site: Site, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width of the features of a site, for a latent of `size` cells."""
    blocks = [unet.input_blocks[: site.number + 1] if site.block == "input" else unet.input_blocks]
    if site.block == "output":
        blocks.append(unet.output_blocks[: site.number])
    layers = [layer for of_side in blocks for block in of_side for layer in block]
    downs, ups = (sum(isinstance(layer, kind) for layer in layers) for kind in (Downsample, Upsample))
    h, w = size
    for _ in range(downs - ups):
        h, w = (h + 1) // 2, (w + 1) // 2
    return h, w


def unet_of(model: ModelPatcher, reason: str = OF_UNETS) -> UNetModel:
    """Returns the network of a model. Raises ValueError with the reason, a sentence, if it is not the host's UNet."""
    unet = model.get_model_object("diffusion_model")
    unet = getattr(unet, "_orig_mod", unet)  # a compiled network hides the one it was made from
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"This node steers a UNet (SD1.x, SD2.x, SDXL and relatives), but the model is "
            f"{type(model.model).__name__} ({type(unet).__name__}). {reason} Connect a UNet model or remove the node."
        )
    return unet


def _transformers(unet: UNetModel) -> Iterator[tuple[Block, int, int, str, nn.Module]]:
    for block, number, path, module in _blocks(unet):
        for place, layer in enumerate(module):
            if isinstance(layer, SpatialTransformer):
                for index, transformer in enumerate(layer.transformer_blocks):
                    yield block, number, index, f"{path}.{place}.transformer_blocks.{index}", transformer


def _blocks(unet: UNetModel) -> Iterator[tuple[Block, int, str, nn.Module]]:
    for number, module in enumerate(unet.input_blocks):
        yield "input", number, f"input_blocks.{number}", module
    if unet.middle_block is not None:
        yield "middle", 0, "middle_block", unet.middle_block
    for number, module in enumerate(unet.output_blocks):
        yield "output", number, f"output_blocks.{number}", module


def family_of(unet: UNetModel, model: ModelPatcher) -> str:
    """Returns SD1.x, SD2.x, SDXL, SVD or a description of others, by the network's blocks and the host's class."""
    if any(isinstance(layer, VideoResBlock) for block in unet.input_blocks for layer in block):
        return "SVD"
    if isinstance(model.model.model_config, comfy.supported_models.SD20):
        return "SD2.x"
    if unet.num_classes is None:
        return "SD1.x"
    return "SDXL" if isinstance(model.model, comfy.model_base.SDXL) else "of another family"


def block_names(unet: UNetModel) -> dict[str, Transformer]:
    """Returns all transformer blocks in execution order by their names in diffusers.

    Such a name is down_blocks.1.attentions.0.transformer_blocks.0. The names are read from the blocks, for the host's
    table assumes that all levels have as many blocks as the first.
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
    """Returns the name that the attention of each block has. A level ends with the layer that changes the size."""
    places, level, place = [], 0, 0
    for block in blocks:
        places.append(f"{name}.{level}.attentions.{place}")
        has_attention = any(hasattr(layer, "transformer_blocks") for layer in block)
        place += has_attention
        if any(isinstance(layer, turn) for layer in block):
            level, place = level + 1, 0
    return places
