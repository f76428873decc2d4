"""What the shipped transformer reaches, measured through the host: the numbers on its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import read_file
from ...nodes.guidance.adaptive_projection import AdaptiveProjectedGuidance
from ...nodes.guidance.cfg_zero import CFGZeroStar
from ...nodes.guidance.normalized_attention import NormalizedAttentionGuidance
from ...nodes.guidance.perturbed_attention import PerturbedAttentionGuidance
from ...nodes.guidance.skip_layer import SkipLayerGuidance
from ...nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
from ..evaluate import AT_ONCE, SamplingSettings, conditioning, gain, gain_of_shapes, prompts, sample, score
from ..judge import judge
from ..world.dit import DIT_FILE
from ..world.host_model import dit_config, load_model
from ..world.model import BASE_FILE, WORDS_KEY
from ..world.scenes import SLOTS
from .guidance_numbers import COLOUR, FREE_SEED, clipped, free_words
from .numbers import COUNT, GUIDANCE_SEED, cfg_lines, distances, free_lines

FLOW = SamplingSettings(sampler="euler", scheduler="simple")
FREE = FLOW._replace(cfg=1.0)
BURNT = FLOW._replace(cfg=12.0)
BURNT_COUNT = 32


def load_dit(path: Path = DIT_FILE) -> tuple[ModelPatcher, Tensor]:
    """The transformer as its node makes it, and the table of words."""
    return load_model(read_file(path), path.name, dit_config), read_file(BASE_FILE)[WORDS_KEY].float()


def corrected(model: ModelPatcher) -> dict[str, ModelPatcher]:
    """The model with each correction of CFG, at settings for pictures of 32 cells and a high CFG."""
    return {
        "plain": model,
        "CFG-Zero*": CFGZeroStar.execute(model, 0, 0.0, 1.0).result[0],
        "CFG-Zero*, first step zero": CFGZeroStar.execute(model, 1, 0.0, 1.0).result[0],
        "APG": AdaptiveProjectedGuidance.execute(model, 0.0, 3.0, 0.0, 0.0, 1.0).result[0],
    }


def guided(model: ModelPatcher) -> dict[str, ModelPatcher]:
    """The model with each guidance that clears up its pictures, at settings found on other noise.

    `auto` is block 4, as deep as the block that diffusers' pipeline for Stable Diffusion 3 takes.
    """
    return {"PAG": PerturbedAttentionGuidance.execute(model, 0.8, 0.2, 0.7, "auto", "none", 0.1).result[0]}


def with_better_shapes(model: ModelPatcher) -> dict[str, ModelPatcher]:
    """The model with each guidance that draws the shapes better that words ask for, at settings found on other noise.

    Without words they do not help (demo/README.md).
    """
    return {
        "SLG": SkipLayerGuidance.execute(model, 4.0, 0.0, 0.3, "b3").result[0],
        "SEG": SmoothedEnergyGuidance.execute(model, 4.0, -1.0, 0.0, 0.3, "b3").result[0],
    }


def shape_lines(model: ModelPatcher, table: Tensor, words: Tensor) -> Iterator[str]:
    """How much better words (b, slots) are drawn without CFG, each pair from the same noise."""
    before = score(sample(model, table, words, FREE, GUIDANCE_SEED), words)
    yield f"words, cfg 1: {distances(before)}"
    for name, steered in with_better_shapes(model).items():
        after = score(sample(steered, table, words, FREE, GUIDANCE_SEED), words)
        quality, shapes = gain(after, before), gain_of_shapes(after, before)
        yield (
            f"words, cfg 1, {name}: {distances(after)}; {quality.mean:+.2f} ± {quality.error:.2f} dB, template error "
            f"lower by {shapes.mean:.4f} ± {shapes.error:.4f}, in {shapes.better:.0%} of the pairs"
        )


def colours_drawn(model: ModelPatcher, table: Tensor, count: int) -> Tensor:
    """The colours (count,) that the model draws without words."""
    return judge(sample(model, table, free_words(count), FREE, FREE_SEED)).words[:, COLOUR]


def colours_kept(model: ModelPatcher, table: Tensor, before: Tensor, shift: int) -> float:
    """The share of pictures without words that keep their colours `before` (b,) if the negative of NAG names these.

    With a `shift` it names the colours that are so many places further in the list, for comparison.
    """
    negative = free_words(len(before))
    negative[:, COLOUR] = (before + shift) % len(SLOTS["colour"])
    prompt = conditioning(table, negative)
    steered = NormalizedAttentionGuidance.execute(model, prompt, 4.0, 2.5, 0.5, 0.0, 1.0).result[0]
    return (colours_drawn(steered, table, len(before)) == before).float().mean().item()


def dit_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a transformer."""
    model, table = load_dit(path)
    words = prompts(COUNT)
    yield f"all of these: {FLOW.steps} steps, {FLOW.sampler}, {FLOW.scheduler}"
    yield from cfg_lines(model, table, words, FLOW)
    few = words[:BURNT_COUNT]
    for name, steered in corrected(model).items():
        found = score(sample(steered, table, few, BURNT), few)
        yield (
            f"cfg {BURNT.cfg:g}, {name}, {len(few)} pictures: all words {found.rates['all']:.2f}, numbers that clip "
            f"{clipped(found.image):.1%}; {distances(found)}"
        )
    yield from free_lines(model, table, guided(model), FREE)
    yield from shape_lines(model, table, words)
    before = colours_drawn(model, table, AT_ONCE)
    for shift, what in ((0, "these colours"), (1, "others")):
        kept = colours_kept(model, table, before, shift)
        yield f"no words, cfg 1, NAG with a negative that names {what}: {kept:.0%} of the pictures keep their colour"
