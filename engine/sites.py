"""The places in a network at which methods act: attentions, by name and by depth.

A site names an attention: kind, block, number and index. The host names those of its UNet so. In a transformer the
block is one of its stacks. A depth tells which of two places in the network comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

# Of the picture (in a transformer also of its text), text attention, attention of a text to itself.
AttentionKind = Literal["attn1", "attn2", "text"]
Block = Literal["input", "middle", "output", "context", "noise", "double", "single", "layer"]
ORDER: Mapping[Block, int] = {
    "input": 0, "middle": 1, "output": 2,  # of a UNet
    "context": 0, "noise": 1, "double": 2, "single": 3, "layer": 4,  # of a transformer
}  # fmt: skip


class Depth(NamedTuple):
    """How far a call of the network has come. Depths compare in execution order."""

    block: int  # its number in ORDER
    number: int
    layer: int  # 0: where the block begins, 1: where its transformers do


class Site(NamedTuple):
    """One attention of a network."""

    kind: AttentionKind
    block: Block
    number: int
    index: int  # transformer inside the block of a UNet, or attention of its kind inside the block of a transformer

    @property
    def depth(self) -> Depth:
        return Depth(ORDER[self.block], self.number, 1)
