"""How well pictures of the demo model follow the hints of a ControlNeXt, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import read_file
from ...nodes.controlnext.hint import ControlNeXt
from ...nodes.controlnext.load import make_controlnext, make_unet_weights
from ...nodes.controlnext.nodes import ControlNeXtApply
from ..evaluate import AT_ONCE, SamplingSettings, one_line, sample
from ..judge import Verdict, judge
from ..world.model import WEIGHTS
from ..world.scenes import SLOTS, Views, draw, draw_words, render
from .numbers import load_base

HINTS = ("mask", "depth", "edge")
FILE = WEIGHTS / "controlnext" / "reins-demo-controlnext.safetensors"
FORM = ("shape", "place", "size")  # the slots that a hint shows
COUNT = 128
SEED = 21
SETTINGS = SamplingSettings()


class ControlNeXtDemo(NamedTuple):
    """The demo model, its words and a ControlNeXt."""

    model: ModelPatcher
    table: Tensor
    control: ControlNeXt

    def draw(self, words: Tensor, hints: Tensor, settings: SamplingSettings = SETTINGS, **apply: object) -> Tensor:
        """Pictures (b, 3, SIZE, SIZE) of words (b, slots) that follow hints (b, 3, SIZE, SIZE)."""
        drawn = []
        for some, pictures in zip(words.split(AT_ONCE), hints.split(AT_ONCE), strict=True):
            steered = ControlNeXtApply.execute(self.model, self.control, pictures.movedim(1, -1), **apply).result[0]
            drawn.append(sample(steered, self.table, some, settings))
        return torch.cat(drawn)


class HintedScenes(NamedTuple):
    """Scenes as hints to follow."""

    hints: Tensor  # (kinds, b, 3, SIZE, SIZE)
    mask: Tensor  # (b, SIZE, SIZE)
    words: Tensor  # (b, slots)

    def saying(self, unsaid: Sequence[str] = FORM) -> Tensor:
        """The words (b, slots) with these slots unsaid."""
        return torch.where(torch.tensor([slot in unsaid for slot in SLOTS]), -1, self.words)


def draw_hinted_scenes(count: int = COUNT, seed: int = SEED) -> HintedScenes:
    """Random scenes with their hints."""
    generator = torch.Generator().manual_seed(seed)
    words = draw_words(count, generator)
    views = render(draw(count, generator, words))
    return HintedScenes(hints_of(views), views.mask, words)


def hints_of(views: Views) -> Tensor:
    """The hints (kinds, b, 3, SIZE, SIZE) of scenes, in the order of HINTS."""
    return torch.stack([getattr(views, kind)[:, None].expand(-1, 3, -1, -1) for kind in HINTS])


def iou(one: Tensor, other: Tensor) -> Tensor:
    """The intersection over union (b,) of two masks (b, h, w) of 0 and 1."""
    both, either = (one * other).sum((1, 2)), torch.maximum(one, other).sum((1, 2))
    return both / either.clamp(min=1)


def load_controlnext_demo(path: Path = FILE) -> ControlNeXtDemo:
    """The demo model with the ControlNeXt of a file."""
    weights = read_file(path)
    unet = make_unet_weights(weights, path.name)
    return ControlNeXtDemo(*load_base(), make_controlnext(weights, path.name, unet=unet))


def controlnext_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    controlled, given = load_controlnext_demo(path), draw_hinted_scenes()
    words = given.saying()
    for kind, hints in zip(HINTS, given.hints, strict=True):
        for strength in (1.0, 0.5):
            verdict = judge(controlled.draw(words, hints, strength=strength))
            yield f"{kind}, strength {strength:g}: {describe_hinted(verdict, given)}"
    verdict = judge(controlled.draw(words, given.hints[0], strength=0.0))
    yield f"the UNet's increments alone: {describe_hinted(verdict, given)}"
    verdict = judge(controlled.draw(words, given.hints[0], strength=0.0, unet_strength=0.0))
    yield f"nothing of the file: {describe_hinted(verdict, given)}"


def describe_hinted(verdict: Verdict, given: HintedScenes) -> str:
    """How well pictures follow their hints, in one line."""
    right = verdict.right(given.words).float().mean(0)
    rates = dict(zip(SLOTS, right.tolist(), strict=True))
    common = iou(verdict.mask, given.mask).mean()
    return f"IoU with the hint's mask {common:.2f}; {one_line(rates)}; quality {verdict.quality.mean():.1f} dB"
