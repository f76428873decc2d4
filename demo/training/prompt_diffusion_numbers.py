"""Prompt Diffusion (2305.01115): how well the demo model does what an example pair shows, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import read_file
from ...nodes.prompt_diffusion.load import make_prompt_diffusion
from ...nodes.prompt_diffusion.nodes import PromptDiffusionExample
from ..evaluate import SamplingSettings
from ..judge import judge
from ..world.model import WEIGHTS
from ..world.scenes import Views, draw, draw_words, render
from .control_net_numbers import ControlNetDemo
from .controlnext_numbers import HINTS, SETTINGS, HintedScenes, describe_hinted, hints_of
from .numbers import load_base

FILE = WEIGHTS / "controlnet" / "reins-demo-prompt-diffusion.safetensors"
COUNT = 32
SEED = 31
RANGE = "-1..1 (as trained)"


class PromptDiffusionDemo(NamedTuple):
    """The demo model, its words, and a Prompt Diffusion without an example."""

    model: ModelPatcher
    table: Tensor
    control: ControlBase

    def draw(self, words: Tensor, source: Tensor, target: Tensor, query: Tensor, **example: object) -> Tensor:
        """Pictures (b, 3, SIZE, SIZE) from words (b, slots), one example pair (1, 3, h, w) and queries (b, 3, h, w)."""
        pair = (part.movedim(1, -1) for part in (source, target))
        shown = PromptDiffusionExample.execute(self.control, *pair, **{"pixel_range": RANGE, "drop": False, **example})
        return ControlNetDemo(self.model, self.table, shown.result[0]).draw(words, query, settings_for(words))


class MappedScenes(NamedTuple):
    """Drawn pictures, their maps in the order of HINTS, and their words."""

    views: Views
    maps: Tensor  # (kinds, b, 3, SIZE, SIZE)
    words: Tensor  # (b, slots)

    @property
    def image(self) -> Tensor:
        """The pictures (b, 3, SIZE, SIZE) in 0..1."""
        return self.views.image


def draw_mapped_scenes(count: int = COUNT, seed: int = SEED) -> MappedScenes:
    """Random scenes with their maps."""
    generator = torch.Generator().manual_seed(seed)
    words = draw_words(count, generator)
    views = render(draw(count, generator, words))
    return MappedScenes(views, hints_of(views), words)


def settings_for(words: Tensor) -> SamplingSettings:
    """The settings for words (b, slots). Maps are drawn without words, and without words CFG has no effect."""
    return SETTINGS if (words >= 0).any() else SETTINGS._replace(cfg=1.0)


def load_prompt_diffusion_demo(path: Path = FILE) -> PromptDiffusionDemo:
    """The demo model with the Prompt Diffusion of a file."""
    return PromptDiffusionDemo(*load_base(), make_prompt_diffusion(read_file(path), path.name))


def errors(drawn: Tensor, asked: MappedScenes) -> list[float]:
    """The mean absolute distance of drawn maps (b, 3, SIZE, SIZE) from each kind of true maps."""
    return [(drawn - maps).abs().mean().item() for maps in asked.maps]


def prompt_diffusion_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    model, asked, example = load_prompt_diffusion_demo(path), draw_mapped_scenes(), draw_mapped_scenes(1, SEED + 1)
    silent = torch.full_like(asked.words, -1)
    for kind, shown in zip(HINTS, example.maps, strict=True):
        distances = errors(model.draw(silent, example.image, shown, asked.image), asked)
        yield f"picture to {kind}: mean error against {one_line_of_errors(distances)}"
    distances = errors(model.draw(silent, example.image, example.maps[0], asked.image, drop=True), asked)
    yield f"picture without an example: mean error against {one_line_of_errors(distances)}"
    given = HintedScenes(asked.maps, asked.views.mask, asked.words)
    words = given.saying()
    for kind, shown, query in zip(HINTS, example.maps, asked.maps, strict=True):
        yield f"{kind} to picture: {describe_hinted(judge(model.draw(words, shown, example.image, query)), given)}"


def one_line_of_errors(distances: list[float]) -> str:
    """The errors with the kinds of map, in one line."""
    return ", ".join(f"{kind} {value:.3f}" for kind, value in zip(HINTS, distances, strict=True))
