"""UniCon (2410.11439): how well its five uses work on the demo model, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nodes.unicon.apply_node import UniConApply
from ...nodes.unicon.joint_node import UniConApplyJoint, UniConJointLatent, UniConSplit
from ...nodes.unicon.load import read_unicon
from ...nodes.unicon.side_by_side import UniCon
from ...nodes.unicon.two_clocks_node import UniConSampler
from ..evaluate import AT_ONCE, NOISE_SEED, Conditioning, SamplingSettings, one_line, sample
from ..judge import Verdict, judge
from ..world.model import WEIGHTS, tokens
from ..world.scenes import FLOOR_FAR, FLOOR_NEAR, SIZE, SLOTS, Views, draw, draw_words, render
from .numbers import load_base

FILE = WEIGHTS / "unicon" / "reins-demo-unicon.safetensors"
FORM = ("shape", "place", "size")  # the slots that a depth map shows
COUNT, SEED = 32, 21
SETTINGS = SamplingSettings()
NEAR = 0.52  # depth above it is the shape, below it the floor
LEVELS = (0.0, 0.5, 0.75, 1.0)  # noise levels of a condition that is followed coarsely


class Pairs(NamedTuple):
    """Pictures and depth maps (b, 3, SIZE, SIZE) in 0..1."""

    image: Tensor
    depth: Tensor


class DepthScenes(NamedTuple):
    """Scenes with their pictures and depth maps, and their words (b, slots)."""

    views: Views
    words: Tensor

    @property
    def depth(self) -> Tensor:
        """The depth maps (b, 3, SIZE, SIZE) in 0..1."""
        return self.views.depth[:, None].expand(-1, 3, -1, -1)

    def saying(self, unsaid: Sequence[str] = FORM) -> Tensor:
        """The words (b, slots) with these slots unsaid."""
        return torch.where(torch.tensor([slot in unsaid for slot in SLOTS]), -1, self.words)


class UniConDemo(NamedTuple):
    """The demo model, its words and a UniCon."""

    model: ModelPatcher
    table: Tensor
    unicon: UniCon

    def prompt(self, words: Tensor, depth: bool = False) -> Conditioning:
        """The conditioning of words (b, slots), for pictures or for depth maps."""
        return [[self.table[tokens(words, depth)], {}]]

    def image(self, words: Tensor, depth: Tensor, settings: SamplingSettings = SETTINGS, **apply: object) -> Tensor:
        """Pictures (b, 3, SIZE, SIZE) of words (b, slots) that follow depth maps (b, 3, SIZE, SIZE)."""
        drawn = []
        for some, maps in zip(words.split(AT_ONCE), depth.split(AT_ONCE), strict=True):
            steered = self._beside(some, maps, "condition", **apply)
            drawn.append(sample(steered, self.table, some, settings))
        return torch.cat(drawn)

    def depth(self, words: Tensor, image: Tensor, settings: SamplingSettings = SETTINGS, **apply: object) -> Tensor:
        """Depth maps (b, 3, SIZE, SIZE) of pictures (b, 3, SIZE, SIZE) and words (b, slots)."""
        drawn = []
        for some, pictures in zip(words.split(AT_ONCE), image.split(AT_ONCE), strict=True):
            steered = self._beside(some, pictures, "image", **apply)
            empty = torch.zeros(len(some), 3, SIZE, SIZE)
            noise = comfy.sample.prepare_noise(empty, NOISE_SEED)
            drawn.append(self._sampled(steered, noise, empty, self.prompt(some, depth=True), settings))
        return torch.cat(drawn)

    def both(
        self, words: Tensor, depth: Tensor | None = None, schedule: str = "", settings: SamplingSettings = SETTINGS,
        **apply: object,
    ) -> Pairs:  # fmt: skip
        """Pictures of words (b, slots) with their depth maps.

        They coarsely follow the maps in `depth` (b, 3, SIZE, SIZE), if these are given.
        """
        drawn = []
        for start in range(0, len(words), AT_ONCE):
            some = words[start : start + AT_ONCE]
            given = None if depth is None else as_latent(depth[start : start + AT_ONCE])
            image = as_latent(torch.full((len(some), 3, SIZE, SIZE), 0.5))
            latent = UniConJointLatent.execute(image, given).result[0]
            (steered,) = UniConApplyJoint.execute(
                self.model, self.unicon, self.prompt(some, depth=True), self._nothing(), **apply
            ).result
            sampler = UniConSampler.execute("ddim", 1.0, schedule).result[0] if schedule else None
            prompts = torch.cat([some, some])
            noise = comfy.sample.prepare_noise(latent["samples"], NOISE_SEED)
            pair = self._sampled(steered, noise, latent["samples"], self.prompt(prompts), settings, sampler)
            drawn.append([half["samples"] for half in UniConSplit.execute({"samples": pair}).result])
        return Pairs(*(torch.cat(halves) for halves in zip(*drawn, strict=True)))

    def _nothing(self) -> Conditioning:
        return self.prompt(torch.full((1, len(SLOTS)), -1))

    def _beside(self, words: Tensor, pictures: Tensor, role: str, **apply: object) -> ModelPatcher:
        positive = self.prompt(words, depth=role == "condition")
        return UniConApply.execute(
            self.model, self.unicon, as_latent(pictures), role, positive, self._nothing(), **apply
        ).result[0]  # fmt: skip

    def _sampled(
        self, model: ModelPatcher, noise: Tensor, latent: Tensor, positive: Conditioning, settings: SamplingSettings,
        sampler: object = None,
    ) -> Tensor:  # fmt: skip
        """The pictures that a run makes of noise and latent, (b, 3, SIZE, SIZE) in 0..1."""
        table = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(table, settings.scheduler, settings.steps)
        sampler = sampler or comfy.samplers.sampler_object(settings.sampler)
        with torch.inference_mode():
            out = comfy.sample.sample_custom(
                model, noise, settings.cfg, sampler, sigmas, positive, self._nothing(), latent, disable_pbar=True,
                seed=NOISE_SEED,
            )  # fmt: skip
        return ((out.float().cpu() + 1) / 2).clamp(0, 1)


def as_latent(pictures: Tensor) -> dict[str, Tensor]:
    """The LATENT of pictures (b, 3, SIZE, SIZE) in 0..1, as the demo's VAE makes it."""
    return {"samples": pictures * 2 - 1}


def draw_depth_scenes(count: int = COUNT, seed: int = SEED) -> DepthScenes:
    """Random scenes with their depth maps."""
    generator = torch.Generator().manual_seed(seed)
    words = draw_words(count, generator)
    return DepthScenes(render(draw(count, generator, words)), words)


def depth_of(verdict: Verdict) -> Tensor:
    """The depth (b, SIZE, SIZE) of pictures, by what the judge reads in them."""
    floor = torch.linspace(FLOOR_FAR, FLOOR_NEAR, SIZE)[:, None]
    shape = (0.5 + 0.05 * verdict.radius)[:, None, None]
    return torch.lerp(floor.expand_as(verdict.mask), shape.expand_as(verdict.mask), verdict.mask)


def error(one: Tensor, other: Tensor) -> float:
    """The mean absolute distance between two depths (b, SIZE, SIZE)."""
    return (one - other).abs().mean().item()


def load_unicon_demo(path: Path = FILE) -> UniConDemo:
    """The demo model with the UniCon of a file."""
    return UniConDemo(*load_base(), read_unicon(path, path.name))


def unicon_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    beside, given = load_unicon_demo(path), draw_depth_scenes()
    words = given.saying()
    true = given.views.depth
    mean = error(true.mean(0).expand_as(true), true)
    another = error(true.roll(1, 0), true)
    yield f"depths, each against the mean of all: error {mean:.3f}; against another one: {another:.3f}"
    for strength in (1.0, 0.5, 0.0):
        verdict = judge(beside.image(words, given.depth, strength_x=strength, strength_y=strength))
        yield f"depth to image, strengths {strength:g}: {_followed(verdict, given)}"
    drawn = beside.depth(torch.full_like(words, -1), given.views.image).mean(1)
    yield f"image to depth, no words: depth error {error(drawn, true):.3f}"
    pairs = beside.both(given.words)
    yield f"joint: {_agreement(pairs)}; {_rates(judge(pairs.image), given)}"
    for level in LEVELS:
        verdict = judge(beside.both(words, given.depth, condition_noise=level).image)
        yield f"coarse, condition_noise {level:g}: {_followed(verdict, given)}"
    for level in LEVELS[1:-1]:
        verdict = judge(beside.both(words, given.depth, schedule=f"x 0-1, y {1 - level:g}-1").image)
        yield f"coarse, two clocks from {1 - level:g}: depth error {error(depth_of(verdict), true):.3f}"


def _followed(verdict: Verdict, given: DepthScenes) -> str:
    return f"depth error {error(depth_of(verdict), given.views.depth):.3f}; {_rates(verdict, given)}"


def _agreement(pairs: Pairs) -> str:
    seen, depth = depth_of(judge(pairs.image)), pairs.depth.mean(1)
    other = error(seen, depth.roll(1, 0))
    return f"depth of the image against the map beside it {error(seen, depth):.3f}, against another one {other:.3f}"


def _rates(verdict: Verdict, given: DepthScenes) -> str:
    right = verdict.right(given.words).float().mean(0)
    return f"{one_line(dict(zip(SLOTS, right.tolist(), strict=True)))}; quality {verdict.quality.mean():.1f} dB"
