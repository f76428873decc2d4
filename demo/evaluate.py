"""Lets a model draw what words ask for, through the host's sampling, and lets the judge score the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .judge import Verdict, judge
from .world.model import pooled_text, tokens
from .world.scenes import SIZE, SLOTS, draw_words

PROMPTS_SEED, NOISE_SEED = 99, 3
AT_ONCE = 16  # pictures in one batch: more is slower on a CPU
Conditioning = list[tuple[Tensor, dict[str, object]]]


class SamplingSettings(NamedTuple):
    """How pictures are sampled. The defaults are those of the example workflows."""

    cfg: float = 3.0
    steps: int = 16
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    denoise: float = 1.0


class Score(NamedTuple):
    """A batch of pictures and what the judge reads in them."""

    image: Tensor  # (b, 3, SIZE, SIZE)
    verdict: Verdict
    right: Tensor  # (b, slots) booleans

    @property
    def rates(self) -> dict[str, float]:
        """The share of the pictures in which each slot is right, and under "all" in which every slot is."""
        slots = {name: self.right[:, index].float().mean().item() for index, name in enumerate(SLOTS)}
        return {**slots, "all": self.right.all(1).float().mean().item()}

    @property
    def quality(self) -> float:
        """The mean quality of the pictures, in dB."""
        return self.verdict.quality.mean().item()


def prompts(count: int, seed: int = PROMPTS_SEED) -> Tensor:
    """Random words (count, slots) to ask for."""
    return draw_words(count, torch.Generator().manual_seed(seed))


def conditioning(table: Tensor, words: Tensor, values: Mapping[str, object] | None = None) -> Conditioning:
    """The host's conditioning for word indices (b, slots), one row per picture, with the `values` that nodes add."""
    return [[table[tokens(words)], pooled_text() | dict(values or {})]]


def sample(
    model: ModelPatcher, table: Tensor, words: Tensor, settings: SamplingSettings, seed: int = NOISE_SEED,
    start: Tensor | None = None, values: Mapping[str, object] | None = None,
) -> Tensor:  # fmt: skip
    """A picture for each row of words (b, slots), with an empty negative: (b, 3, SIZE, SIZE) in 0..1.

    `start` (b, 3, SIZE, SIZE) in -1..1 is what a denoise below 1 begins with. `values` are added to both prompts.
    """
    latent = torch.zeros(len(words), 3, SIZE, SIZE) if start is None else start
    noise = comfy.sample.prepare_noise(latent, seed)
    negative = conditioning(table, torch.full_like(words[:1], -1), values)
    drawn = []
    with torch.inference_mode():
        for asked, some_noise, some_latent in zip(
            *(part.split(AT_ONCE) for part in (words, noise, latent)), strict=True
        ):
            drawn.append(
                comfy.sample.sample(
                    model, some_noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler,
                    conditioning(table, asked, values), negative, some_latent,
                    denoise=settings.denoise, disable_pbar=True, seed=seed,
                )
            )  # fmt: skip
    return ((torch.cat(drawn).float().cpu() + 1) / 2).clamp(0, 1)


def score(image: Tensor, words: Tensor) -> Score:
    """The score of pictures (b, 3, SIZE, SIZE) that were asked for by words (b, slots)."""
    verdict = judge(image)
    return Score(image, verdict, verdict.right(words))


class Gain(NamedTuple):
    """How paired pictures differ: in quality, in dB, or by how much less their shapes are off."""

    mean: float
    error: float  # standard error of the mean
    better: float  # share of the pairs that got better


def gain(after: Score, before: Score) -> Gain:
    """How much better the pictures of `after` are than those of `before`, pair by pair."""
    return _gain(after.verdict.quality - before.verdict.quality)


def gain_of_shapes(after: Score, before: Score) -> Gain:
    """How much smaller the template error is in `after` than in `before`, pair by pair."""
    return _gain(before.verdict.template_error - after.verdict.template_error)


def _gain(difference: Tensor) -> Gain:
    return Gain(
        difference.mean().item(),
        (difference.std() / len(difference) ** 0.5).item(),
        (difference > 0).float().mean().item(),
    )


def one_line(rates: Mapping[str, float]) -> str:
    """The rates with their names, in one line."""
    return "  ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
