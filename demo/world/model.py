"""The demo model: a UNet small enough to ship, its words, and how its one file is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .scenes import SLOTS

CONTEXT = 64  # numbers per word
POOLED = 64  # numbers of the pooled text, which only the transformer reads
CONSTANT_CHANNELS = 16  # of the first layer's 64, at the start of training
BRANCHES = ("image", "depth")  # "image" says nothing, "depth" is a word that only adapters have learnt

# The host's UNetModel. It is 64 wide because of its GroupNorm(32). Its heads have 64 numbers because the stock
# ControlNet loader takes that for granted. One picture of 32x32 costs 0.59 GMAC.
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
# "top left" is two words, as it would be for a text encoder. Every other slot is one word.
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
    """The indices (b, token slots) for words (b, slots): a place becomes a row and a column. Unsaid slots are -1."""
    shape, colour, place, size, background, texture = words.unbind(1)
    row = torch.where(place < 0, -1, place.div(len(COLUMNS), rounding_mode="floor"))
    column = torch.where(place < 0, -1, place % len(COLUMNS))
    return torch.stack([shape, colour, row, column, size, background, texture], 1)


def tokens(words: Tensor, depth: bool = False) -> Tensor:
    """The rows of the word table, (b, token slots + 1), for words (b, slots).

    `words` are indices within their slots, -1 for a slot that is unsaid. The last row says whether it is a depth map.
    """
    split = split_places(words)
    branch = torch.full((len(words), 1), len(VOCABULARY) - 1 if depth else 0)
    return torch.cat([torch.where(split < 0, 0, split + FIRST), branch], 1)


def pooled_text() -> dict[str, Tensor]:
    """The pooled text (1, pooled) of every prompt, under the host's name for it: zeros.

    A pooled text that names the words would be a second way for them. As it is, they reach the picture by attention
    alone, where methods can act on them.
    """
    return {"pooled_output": torch.zeros(1, POOLED)}


def word_indices(chosen: Mapping[str, str]) -> Tensor:
    """The indices (1, slots) of chosen words within their slots. Slots that are absent or "any" become -1."""
    return torch.tensor([[words.index(chosen[slot]) if chosen.get(slot, "any") != "any" else -1
                          for slot, words in SLOTS.items()]])  # fmt: skip


def start_as_torch_does(module: nn.Module) -> None:
    """Draws the weights of one layer as torch does by itself. The host's layers come without any."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.bias, -bound, bound)


def initialise(unet: nn.Module) -> nn.Module:
    """The UNet with weights to start training from.

    Only the zeros that pad its convolutions tell such a UNet where in the picture it is. With the usual start (biases
    zero, residual branches silent) nothing tells a border from the middle, and words of place had no effect for 30,000
    pictures. Here biases are random, the branches have half strength, and some channels of the first layer are
    constant. So every padding leaves a mark, and words of place are followed after 10,000 pictures.
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
