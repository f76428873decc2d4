"""Translates the names of a UNet's tensors from those of diffusers to those of the host.

The host has a table for image models. Video models add blocks over time, for which the rules are here: they lie beside
the blocks over space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HOST = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
RESNET_END, ATTENTION_END = (".conv1.weight", "in_layers.2.weight"), (".norm.weight", "norm.weight")
VIDEO_RULES = (
    (re.compile(r"(.+\.resnets\.\d+)\.spatial_res_block\.(.+)"), ""),
    (re.compile(r"(.+\.resnets\.\d+)\.temporal_res_block\.(.+)"), "time_stack."),
)
TIME_POSITION = {"linear_1.": "time_pos_embed.0.", "linear_2.": "time_pos_embed.2."}


def host_name(key: str, table: Mapping[str, str]) -> str | None:
    """The host's name of a tensor, by the host's table of a model without time, or None if the name is unknown."""
    if key in table:
        return table[key]
    if key.startswith(HOST):
        return key
    for rule, added in VIDEO_RULES:
        if match := rule.fullmatch(key):
            path, rest = match.groups()
            name, root = table.get(f"{path}.{rest}"), _root(path, table, RESNET_END)
            return None if name is None or root is None else root + added + name.removeprefix(root)
    if match := re.fullmatch(r"(.+\.resnets\.\d+)\.(time_mixer\..+)", key):
        return _joined(_root(match[1], table, RESNET_END), match[2])
    if match := re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)", key):
        return _joined(_root(match[1], table, ATTENTION_END), _over_time(match[2]))
    return None


def _over_time(rest: str) -> str | None:
    """The host's name of a tensor inside an attention over time, or None if it is unknown."""
    if rest.startswith("time_mixer."):
        return rest
    if rest.startswith("temporal_transformer_blocks."):
        return rest.replace("temporal_transformer_blocks.", "time_stack.", 1)
    if rest.startswith("time_pos_embed."):
        start, end = rest.removeprefix("time_pos_embed.").rsplit(".", 1)
        return TIME_POSITION[f"{start}."] + end if f"{start}." in TIME_POSITION else None
    return None


def _root(path: str, table: Mapping[str, str], end: tuple[str, str]) -> str | None:
    """The start of the host's names for a block, by a tensor that every block of the kind has."""
    name = table.get(path + end[0])
    return None if name is None else name.removesuffix(end[1])


def _joined(root: str | None, rest: str | None) -> str | None:
    return None if root is None or rest is None else root + rest
