"""How well pictures of the demo model follow the hints of a ControlNet, through the host's own nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import comfy.controlnet
import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..evaluate import AT_ONCE, SamplingSettings, sample
from ..judge import judge
from ..world.model import WEIGHTS
from .controlnext_numbers import HINTS, SETTINGS, describe_hinted, draw_hinted_scenes
from .numbers import load_base

COUNT = 32  # few, because the host reads the hint anew at every step, which takes most of the time
FILE = WEIGHTS / "controlnet" / "reins-demo-controlnet.safetensors"


class ControlNetDemo(NamedTuple):
    """The demo model, its words and a control network that takes a hint for each picture."""

    model: ModelPatcher
    table: Tensor
    control: ControlBase

    def draw(
        self, words: Tensor, hints: Tensor, settings: SamplingSettings = SETTINGS, strength: float = 1.0
    ) -> Tensor:
        """Pictures (b, 3, SIZE, SIZE) of words (b, slots) that follow hints (b, 3, h, w)."""
        drawn = []
        for some, pictures in zip(words.split(AT_ONCE), hints.split(AT_ONCE), strict=True):
            values = applied(self.control, pictures, strength)
            drawn.append(sample(self.model, self.table, some, settings, values=values))
        return torch.cat(drawn)


def applied(control: ControlBase, hint: Tensor, strength: float = 1.0) -> dict[str, object]:
    """The values that the host's Apply ControlNet (Advanced) adds to both prompts."""
    return {"control": control.copy().set_cond_hint(hint, strength, (0.0, 1.0)), "control_apply_to_uncond": False}


def load_control_net_demo(path: Path = FILE) -> ControlNetDemo:
    """The demo model with the ControlNet of a file."""
    return ControlNetDemo(*load_base(), comfy.controlnet.load_controlnet(str(path)))


def control_net_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    steered, given = load_control_net_demo(path), draw_hinted_scenes(COUNT)
    words = given.saying()
    for kind, hints in zip(HINTS, given.hints, strict=True):
        yield f"{kind}: {describe_hinted(judge(steered.draw(words, hints)), given)}"
    yield f"strength 0: {describe_hinted(judge(steered.draw(words, given.hints[0], strength=0.0)), given)}"
