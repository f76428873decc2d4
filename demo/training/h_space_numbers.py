"""What a captured direction in h-space moves on the demo model, through the nodes.

Its bottleneck carries little: with h set to zero a prediction changes by about a tenth, and of the words the middle
block reads only the size. So size is what a direction can move there, and strengths are larger than on other models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nodes.h_space.direction import HDirection, StoredDirection
from ...nodes.h_space.direction_node import HDirectionCapture
from ...nodes.h_space.edit_node import HSpaceEdit
from ..evaluate import SamplingSettings, conditioning, prompts, sample
from ..judge import Verdict, judge
from ..world.scenes import SIZE, SLOTS
from .numbers import load_base

SETTINGS = SamplingSettings(cfg=1.0, sampler="euler", steps=16)
STRENGTH, END = 4.0, 0.6
SLOT, SOURCE, TARGET = "size", "small", "large"
NAMES = list(SLOTS)


class HSpaceDemo(NamedTuple):
    """The demo model, its words and prompts that leave the size open."""

    model: ModelPatcher
    table: Tensor
    words: Tensor  # (b, slots)

    def draw(self, direction: HDirection, strength: float, mode: str = "asymmetric") -> Verdict:
        edited = HSpaceEdit.execute(self.model, direction, strength, 0.0, END, mode).result[0]
        return judge(sample(edited, self.table, self.words, SETTINGS))

    def capture(self, source: str = SOURCE, target: str = TARGET) -> StoredDirection:
        """From one word of the size to the other, at pictures of which nothing is said."""
        say = [conditioning(self.table, prompt_words(**words)) for words in ({}, {SLOT: source}, {SLOT: target})]
        latent = {"samples": torch.zeros(1, 3, SIZE, SIZE)}
        return HDirectionCapture.execute(
            self.model, say[0], latent, 0, 16, source=say[1], target=say[2], samples=4, pool=True
        ).result[0]


def prompt_words(**words: str) -> Tensor:
    """(1, slots) words of which the others are left open."""
    return torch.tensor([[SLOTS[slot].index(words[slot]) if slot in words else -1 for slot in NAMES]])


def load_h_space_demo(count: int) -> HSpaceDemo:
    words = prompts(count)
    words[:, NAMES.index(SLOT)] = -1
    return HSpaceDemo(*load_base(), words)


def random_direction(like: StoredDirection, seed: int = 0) -> StoredDirection:
    """Of the same lengths, but leading nowhere in particular: the control."""
    dh = like.directions.dh
    drawn = torch.randn(dh.shape[1:], generator=torch.Generator().manual_seed(seed))
    lengths = dh.flatten(1).norm(dim=1) / drawn.norm()
    found = type(like.directions)(drawn * lengths[:, None, None, None], like.directions.sigmas)
    return StoredDirection("drawn at random", found, {})


def kept(found: Verdict, words: Tensor) -> Tensor:
    """(slots,): the share of pictures in which each word that was said is right."""
    return found.right(words).float().mean(0)
