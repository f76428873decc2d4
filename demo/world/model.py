"""The demo model: a UNet small enough to ship, its words, and how its one file is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .scenes import SLOTS

CONTEXT = 64  # numbers per word
CONSTANT_CHANNELS = 16  # of the first layer's 64, at the start of training
BRANCHES = ("image", "depth")  # "image" says nothing; "depth" is a word that only adapters have learnt

# The host's UNetModel.  64 wide because of its GroupNorm(32); heads of 64 because the stock ControlNet loader takes
# that for granted; one picture of 32x32 costs 0.59 GMAC.
UNET: Mapping[str, object] = {
    "image_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 64,
    "channel_mult": [1, 1, 2],
    "num_res_blocks": [0, 1, 1],
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": CONTEXT,
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 1, 1, 1, 1],
    "adm_in_channels": None,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
BASE_FILE = WEIGHTS / "reins-demo-base.safetensors"
CLIP_VISION_FILE = WEIGHTS / "reins-demo-clip-vision.safetensors"
CLIP_VISION_CONFIG = WEIGHTS / "reins-demo-clip-vision.json"
UNET_PREFIX = "model.diffusion_model."
WORDS_KEY = "words.weight"

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
# "top left" is two words, as it would be for a text encoder; every other slot is one
TOKEN_SLOTS: Mapping[str, tuple[str, ...]] = {
    "shape": SLOTS["shape"],
    "colour": SLOTS["colour"],
    "row": ROWS,
    "column": COLUMNS,
    "size": SLOTS["size"],
    "background": SLOTS["background"],
    "texture": SLOTS["texture"],
}
VOCABULARY = ("any", *(word for words in TOKEN_SLOTS.values() for word in words), "depth")
FIRST = torch.tensor([1 + sum(len(words) for words in list(TOKEN_SLOTS.values())[:n]) for n in range(len(TOKEN_SLOTS))])


def split_places(words: Tensor) -> Tensor:
    """(b, token slots) word indices from those per slot (b, slots), -1 where unsaid: a place is a row and a column."""
    shape, colour, place, size, background, texture = words.unbind(1)
    row = torch.where(place < 0, -1, place.div(len(COLUMNS), rounding_mode="floor"))
    column = torch.where(place < 0, -1, place % len(COLUMNS))
    return torch.stack([shape, colour, row, column, size, background, texture], 1)


def tokens(words: Tensor, depth: bool = False) -> Tensor:
    """(b, token slots + 1) rows of the word table for word indices (b, slots) within their slots, -1 where unsaid."""
    split = split_places(words)
    branch = torch.full((len(words), 1), len(VOCABULARY) - 1 if depth else 0)
    return torch.cat([torch.where(split < 0, 0, split + FIRST), branch], 1)


def word_indices(chosen: Mapping[str, str]) -> Tensor:
    """(1, slots) indices within their slots for a word per slot; "any" and absent slots become -1."""
    return torch.tensor([[words.index(chosen[slot]) if chosen.get(slot, "any") != "any" else -1
                          for slot, words in SLOTS.items()]])  # fmt: skip


def start_as_torch_does(module: nn.Module) -> None:
    """Weights of one layer as torch would draw them; the host's layers come without any."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.bias, -bound, bound)


def initialise(unet: nn.Module) -> nn.Module:
    """Weights to start training from.

    A UNet of this kind knows where in the picture it is only from the zeros that pad its convolutions.  With the usual
    start (biases zero, residual branches silent) nothing tells a border from the middle, and words of place stayed
    without any effect for 30,000 pictures.  Here biases are random, the branches speak softly, and some channels of
    the first layer are constant, so that every padding leaves a mark: places are followed after 10,000.
    """
    for name, module in unet.named_modules():
        start_as_torch_does(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name.endswith("proj_out") or name == "out.2":
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif name.endswith("out_layers.3"):
                with torch.no_grad():
                    module.weight *= 0.5
    first = unet.get_submodule("input_blocks.0.0")
    with torch.no_grad():
        first.weight[:CONSTANT_CHANNELS] = 0
        nn.init.normal_(first.bias[:CONSTANT_CHANNELS])
    return unet
