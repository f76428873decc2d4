"""Asyrp (2210.10960): how far a captured direction in h-space moves pictures of the demo model, through the nodes.

The model's bottleneck has little effect: with h set to zero a prediction changes by about a tenth, and of the words the
middle block reads only the size. So a direction can only move the size, and needs more strength than on other models.
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
        """The verdict on pictures that are edited along a direction."""
        edited = HSpaceEdit.execute(self.model, direction, strength, 0.0, END, mode).result[0]
        return judge(sample(edited, self.table, self.words, SETTINGS))

    def capture(self, source: str = SOURCE, target: str = TARGET) -> StoredDirection:
        """The direction from one word of the size to the other, at pictures without words."""
        prompts = [conditioning(self.table, prompt_words(**words)) for words in ({}, {SLOT: source}, {SLOT: target})]
        latent = {"samples": torch.zeros(1, 3, SIZE, SIZE)}
        return HDirectionCapture.execute(
            self.model, prompts[0], latent, 0, 16, source=prompts[1], target=prompts[2], samples=4, pool=True
        ).result[0]


def prompt_words(**words: str) -> Tensor:
    """The indices (1, slots) of these words. All other slots are unsaid."""
    return torch.tensor([[SLOTS[slot].index(words[slot]) if slot in words else -1 for slot in NAMES]])


def load_h_space_demo(count: int) -> HSpaceDemo:
    """The demo model with `count` prompts."""
    words = prompts(count)
    words[:, NAMES.index(SLOT)] = -1
    return HSpaceDemo(*load_base(), words)


def random_direction(like: StoredDirection, seed: int = 0) -> StoredDirection:
    """A random direction of the same lengths, for comparison."""
    dh = like.directions.dh
    drawn = torch.randn(dh.shape[1:], generator=torch.Generator().manual_seed(seed))
    lengths = dh.flatten(1).norm(dim=1) / drawn.norm()
    random = type(like.directions)(drawn * lengths[:, None, None, None], like.directions.sigmas)
    return StoredDirection("drawn at random", random, {})


def kept(verdict: Verdict, words: Tensor) -> Tensor:
    """The share of pictures in which each of the words (b, slots) is right: (slots,)."""
    return verdict.right(words).float().mean(0)
