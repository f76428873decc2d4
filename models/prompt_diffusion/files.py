"""Prompt Diffusion (2305.01115): its files, known by their content: the original's checkpoints, and diffusers' files.

The original checkpoint holds all of Stable Diffusion, and only its control part is taken. What tells a Prompt Diffusion
from other ControlNets is the second stem, for the query. Six channels alone do not: other ControlNets have them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..foreign_files import few, kind_among, without_wrapping
from .network import CONVS

Weights = Mapping[str, Tensor]
Pairs = tuple[tuple[str, str], ...]  # the start of a name in a file, and in the host's network
WRAPPED = ("state_dict.", "module.", "_orig_mod.")  # by training frameworks
CONTROL = "control_model."  # in the original's checkpoint

ORIGINAL: Pairs = (("input_cond_block.", "input_hint_block.query."), ("input_hint_block.", "input_hint_block.pair."))
STEMS = {"controlnet_query_cond_embedding": "query", "controlnet_cond_embedding": "pair"}  # in diffusers
QUERY = {"input_cond_block.": "original", "controlnet_query_cond_embedding.": "diffusers"}

# diffusers has other names for these layers, but not for those inside a transformer
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
SINGLE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "controlnet_mid_block": "middle_block_out.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip

# What to say to a user who chose another kind of file: the kind, and the names of its tensors.
OTHERS = {
    "a ControlNeXt: use Load ControlNeXt": r"(controlnext\.|controlnet\.)?(down_res|mid_convs)\..*",
    "an IP-Adapter: use Load IP-Adapter": r"(image_proj|ip_adapter)\..*",
    "a T2I-Adapter: use Load ControlNet Model": r"(adapter\.)?body\..*",
    "a ControlNet-LLLite: use the node that was made for it": r"lllite_.*",
    "a UniCon: use Load UniCon": r".*\.(attn1n|conv1n)\..*",
    "a LoRA: use Load LoRA": r".*\blora_(up|down|A|B)\b.*|lora_(unet|te)\d?_.*",
    "an image model: use Load Checkpoint, or Load Diffusion Model": (
        r"(model\.)?diffusion_model\..*|(first|cond)_stage_model\..*"
        r"|((down|up|input|output)_blocks?|mid(dle)?_block|conv_in|conv_out|time_embed)\..*"
    ),
}
CONTROLNET = (
    r"(zero_convs|input_hint_block|controlnet_(cond_embedding|down_blocks|blocks|x_embedder))\b.*|lora_controlnet"
)


class ControlPart(NamedTuple):
    """The control part of a file, under the names of the file."""

    weights: dict[str, Tensor]
    pairs: Pairs

    def for_host(self) -> dict[str, Tensor]:
        """The tensors under the names of the host's ControlNet that has `Stems` in the place of its stem."""
        return {_renamed(key, self.pairs): value for key, value in self.weights.items()}

    def own_name(self, key: str) -> str:
        """The name in the file for a tensor of the host's network."""
        return _renamed(key, tuple((ours, theirs) for theirs, ours in self.pairs))


def control_part(weights: Weights, name: str) -> ControlPart:
    """The control part of a file called `name`.

    Raises ValueError if the file is of another kind, and names that kind.
    """
    tensors = without_wrapping(weights, WRAPPED)
    part = {key.removeprefix(CONTROL): value for key, value in tensors.items() if key.startswith(CONTROL)} or tensors
    layouts = [layout for start, layout in QUERY.items() if any(key.startswith(start) for key in part)]
    if not layouts:
        raise ValueError(_refusal(part, name))
    return ControlPart(part, ORIGINAL if layouts[0] == "original" else diffusers_pairs(part))


def diffusers_pairs(weights: Weights) -> Pairs:
    """The pairs of names for a file of diffusers, by the number of residual blocks on each of its levels."""
    pairs = dict(SINGLE)
    for theirs, ours in STEMS.items():
        names = ["conv_in", *(f"blocks.{i}" for i in range(len(CONVS) - 1)), "conv_out"]
        pairs |= {f"{theirs}.{name}": f"input_hint_block.{ours}.{2 * i}" for i, name in enumerate(names)}
    block = 1
    for level in range(_count(weights, r"down_blocks\.([0-9]{1,2})\.")):
        for i in range(_count(weights, rf"down_blocks\.{level}\.resnets\.([0-9]{{1,2}})\.")):
            pairs[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{block}.0"
            pairs[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{block}.1"
            block += 1
        pairs[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
        block += 1
    pairs |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(block)}
    resnets = {theirs: ours for theirs, ours in pairs.items() if ".resnets." in theirs}
    whole = {theirs: ours for theirs, ours in pairs.items() if theirs not in resnets}
    whole |= {f"{a}.{c}": f"{b}.{d}" for a, b in resnets.items() for c, d in RESNET.items()}
    return tuple((f"{theirs}.", f"{ours}.") for theirs, ours in whole.items())


def _renamed(key: str, pairs: Pairs) -> str:
    for old, new in pairs:  # at most one fits: none of them begins with another
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _count(weights: Weights, pattern: str) -> int:
    return max((1 + int(match[1]) for key in weights if (match := re.match(pattern, key))), default=0)


def _refusal(weights: Weights, name: str) -> str:
    if any(re.fullmatch(CONTROLNET, key) for key in weights):
        return (
            f"{name} is not a Prompt Diffusion but an ordinary ControlNet, without tensors for a query "
            f"({' or '.join(f'{start}*' for start in QUERY)}): use Load ControlNet Model."
        )
    if (what := kind_among(weights, OTHERS)) is not None:
        return f"{name} is not a Prompt Diffusion but {what}."
    return (
        f"{name} is not a Prompt Diffusion: it should hold {' or '.join(f'{start}*' for start in QUERY)}, but holds "
        f"{few(weights)}. Choose a file of the original release or "
        f"of its diffusers version."
    )
