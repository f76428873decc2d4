"""What the shipped files reach, measured through the host as a person would use them: the numbers on their cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import read_file
from ...nodes.guidance.perturbed_attention import PerturbedAttentionGuidance
from ...nodes.guidance.self_attention import SelfAttentionGuidance
from ...nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
from ..evaluate import SamplingSettings, Score, gain, one_line, prompts, sample, score
from ..world.host_model import load_clip_vision, load_model
from ..world.model import BASE_FILE, CLIP_VISION_CONFIG, CLIP_VISION_FILE, TOKEN_SLOTS, WORDS_KEY, split_places
from ..world.scenes import SLOTS, draw, draw_words, render
from .clip_vision import words_read

COUNT = 128
GUIDANCE_SEED = 11  # of the noise on which guidance is measured. Its settings were chosen on other noise.
NO_CFG = SamplingSettings(cfg=1.0)


def load_base(path: Path = BASE_FILE) -> tuple[ModelPatcher, Tensor]:
    """The model as its node makes it, and its table of words."""
    weights = read_file(path)
    return load_model(weights, path.name), weights[WORDS_KEY].float()


def load_encoder(path: Path = CLIP_VISION_FILE) -> tuple[ClipVisionModel, Tensor]:
    """The image encoder as the node makes it, and the vectors of the words it was trained against."""
    weights = read_file(path)
    return load_clip_vision(CLIP_VISION_CONFIG, weights, path.name), weights[WORDS_KEY].float()


def guided(model: ModelPatcher) -> dict[str, ModelPatcher]:
    """The model with each guidance, at settings found on other noise. The example workflows have them too.

    The self-attention of the second block up (u2) decides the structure. That of the middle (m0) hardly matters here.
    """
    pag = PerturbedAttentionGuidance.execute(model, 0.7, 0.2, 0.7, "u2", "none", 0.1)
    seg = SmoothedEnergyGuidance.execute(model, 0.7, -1.0, 0.2, 0.7, "u2", "none")
    sag = SelfAttentionGuidance.execute(model, 0.5, 1.0, 1.0, 0.0, 1.0, 0)
    return {"PAG": pag.result[0], "SEG": seg.result[0], "SAG": sag.result[0]}


def repainted(model: ModelPatcher, table: Tensor, words: Tensor, cfg: float) -> Score:
    """The score of drawn scenes of words (b, slots), painted over at denoise 0.35 with the next colour as only word."""
    image = render(draw(len(words), torch.Generator().manual_seed(1), words)).image
    asked = torch.full_like(words, -1)
    asked[:, 1] = (words[:, 1] + 1) % len(SLOTS["colour"])
    settings = SamplingSettings(cfg=cfg, denoise=0.35)
    return score(sample(model, table, asked, settings, start=image * 2 - 1), asked)


def base_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a base model."""
    model, table = load_base(path)
    words = prompts(COUNT)
    yield from cfg_lines(model, table, words, SamplingSettings())
    for cfg in (1.0, 3.0):
        colour = repainted(model, table, words, cfg).rates["colour"]
        yield f"another colour painted over a drawn scene, denoise 0.35, cfg {cfg:g}: colour {colour:.2f}"
    yield from free_lines(model, table, guided(model), NO_CFG)


def cfg_lines(model: ModelPatcher, table: Tensor, words: Tensor, settings: SamplingSettings) -> Iterator[str]:
    """How well words (b, slots) are followed at three scales of CFG, and a control."""
    for cfg in (1.0, 3.0, 5.0):
        plain = score(sample(model, table, words, settings._replace(cfg=cfg)), words)
        yield f"cfg {cfg:g}: {describe_score(plain)}"
        if cfg == 3.0:
            others = score(plain.image, words.roll(1, 0))
            yield f"the same pictures against the words of other prompts: {one_line(others.rates)}"


def free_lines(
    model: ModelPatcher, table: Tensor, guided_models: Mapping[str, ModelPatcher], settings: SamplingSettings
) -> Iterator[str]:
    """What guidance makes of pictures without words, each pair from the same noise."""
    free = torch.full((COUNT, len(SLOTS)), -1)
    before = score(sample(model, table, free, settings, GUIDANCE_SEED), free)
    yield f"no words, cfg 1: {distances(before)}"
    for name, steered in guided_models.items():
        after = score(sample(steered, table, free, settings, GUIDANCE_SEED), free)
        change = gain(after, before)
        yield (
            f"no words, cfg 1, {name}: {distances(after)}; {change.mean:+.2f} ± {change.error:.2f} dB, "
            f"better in {change.better:.0%} of the pairs"
        )


def distances(result: Score) -> str:
    """Quality and template error, in one line."""
    error = result.verdict.template_error.mean().item()
    return f"quality {result.quality:.1f} dB, template error {error:.3f}"


def describe_score(result: Score) -> str:
    """Rates and distances, in one line."""
    return f"{one_line(result.rates)}; {distances(result)}"


def with_style(model: ModelPatcher, path: Path, strength: float) -> ModelPatcher:
    """The model with a LoRA file, loaded by the host."""
    styled, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), strength, 0)
    return styled


def style_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a style LoRA."""
    model, table = load_base()
    words = prompts(COUNT)
    words[:, -1] = SLOTS["texture"].index("checked")
    for strength in (0.0, 0.5, 1.0):
        result = score(sample(with_style(model, path, strength), table, words, SamplingSettings()), words)
        yield f"strength {strength:g}: {describe_score(result)}"


def clip_vision_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of an image encoder."""
    encoder, vectors = load_encoder(path)
    generator = torch.Generator().manual_seed(4)
    words = draw_words(4 * COUNT, generator)
    words[:, -1] = torch.randint(len(SLOTS["texture"]), (len(words),), generator=generator)
    image = render(draw(len(words), generator, words)).image
    for size in (32, 256):
        pixels = torch.nn.functional.interpolate(image, (size, size), mode="nearest").movedim(1, -1)
        embeds = encoder.encode_image(pixels)["image_embeds"].float()
        right = (words_read(embeds, vectors) == split_places(words)).float().mean(0).tolist()
        yield f"pictures of {size} pixels: {one_line(dict(zip(TOKEN_SLOTS, right, strict=True)))}"
