"""What guidance methods reach on the demo model, through the nodes: for each method the number it is made to improve.

PAG, SEG and SAG are measured in numbers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import comfy.sample
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.find import all_sites
from ...engine.guidance import AttentionTerm, add_term
from ...engine.run import run_of
from ...engine.scope import Args
from ...engine.span import Span
from ...engine.step import current_step, to_sigma
from ...models.guidance.image_loss import LOSSES, Loss
from ...nodes.guidance.adaptive_projection import AdaptiveProjectedGuidance
from ...nodes.guidance.cfg_zero import CFGZeroStar
from ...nodes.guidance.frequency_decoupled import FrequencyDecoupledGuidance
from ...nodes.guidance.image_guidance import ImageGuidance
from ...nodes.guidance.normalized_attention import NormalizedAttentionGuidance
from ...nodes.guidance.perturbed_attention import (
    SEE_TEXT,
    PerturbedAttentionGuidance,
    perturbed_attention,
)
from ...nodes.guidance.sliding_window import SlidingWindowGuidance
from ...nodes.guidance.sparse_cross_attention import SparseCrossAttention
from ...nodes.guidance.token_perturbation import TokenPerturbationGuidance
from ...nodes.guidance.weak_model import WeakModelGuidance
from ...nodes.inputs.layers import parse_layers
from ..evaluate import AT_ONCE, SamplingSettings, conditioning, sample
from ..judge import judge
from ..world.scenes import PATTERNS, SLOTS, TEXTURE_AMPLITUDE, draw, render
from .numbers import with_style
from .style import StyleTask

FREE_SEED = 7  # of pictures without words
FEW = SamplingSettings(cfg=1.0, steps=12)
BURNT = SamplingSettings(cfg=12.0, sampler="euler")
LARGE = 64  # cells on a side, twice as many as in the pictures that the model knows
PIXELS_OF_A_SHAPE = 12
PAG_SCALE, PAG_SPAN, PAG_LAYERS = 0.7, Span(0.2, 0.7), "u2"  # as in numbers.py
COLOUR, TEXTURE = list(SLOTS).index("colour"), list(SLOTS).index("texture")
CHECKED = SLOTS["texture"].index("checked")


def with_tpg(model: ModelPatcher, scale: float) -> ModelPatcher:
    """The model with TPG in the second block up, where structure is decided, in the middle of the run, as PAG."""
    return TokenPerturbationGuidance.execute(model, scale, 0.2, 0.7, "u2").result[0]


# --- a difference that is held over steps ---


class Effect(NamedTuple):
    """What a guidance changes in pictures beside another: cosine of the two changes, and ratio of their lengths."""

    cosine: float
    norm: float


def with_pag(model: ModelPatcher, refresh: int = 1) -> ModelPatcher:
    """The model with PAG as in numbers.py, which predicts anew in every so many steps."""
    return PerturbedAttentionGuidance.execute(model, PAG_SCALE, *PAG_SPAN, PAG_LAYERS, refresh=refresh).result[0]


def with_skipping_pag(model: ModelPatcher, scale: float = PAG_SCALE) -> ModelPatcher:
    """The model with the same PAG, but nothing in every second step of its range: the control."""
    sites = tuple(parse_layers(PAG_LAYERS, all_sites(model, "attn1")))
    return add_term(
        model,
        SkippingTerm(name="PAG", scale=scale, span=PAG_SPAN, sites=sites, apply=perturbed_attention(SEE_TEXT)),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SkippingTerm(AttentionTerm):
    """A term that acts in the first, third, fifth ... step of its range."""

    def factor(self, args: Args) -> float:
        run = run_of(args["model_options"])
        first = next(i for i, sigma in enumerate(run.sigmas) if self.span.contains(sigma, run, to_sigma(args)))
        number = run.position(current_step(args).sigma) - first
        return super().factor(args) if number % 2 == 0 else 0.0


def effect(found: Tensor, full: Tensor, plain: Tensor) -> Effect:
    """What guided pictures `found` change in plain ones, beside what `full` changes, (b, 3, SIZE, SIZE) each."""
    change, wanted = found - plain, full - plain
    cosine = (change * wanted).sum() / change.norm() / wanted.norm()
    return Effect(cosine.item(), (change.norm() / wanted.norm()).item())


# --- large pictures ---


def draw_large(model: ModelPatcher, table: Tensor, words: Tensor, seed: int = 3) -> Tensor:
    """A large picture for each row of words (b, slots), without CFG: (b, 3, 64, 64) in 0..1."""
    latent = torch.zeros(len(words), 3, LARGE, LARGE)
    positive, negative = conditioning(table, words), conditioning(table, torch.full_like(words[:1], -1))
    with torch.inference_mode():
        drawn = comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, seed), FEW.steps, FEW.cfg, FEW.sampler, FEW.scheduler, positive,
            negative, latent, disable_pbar=True, seed=seed,
        )  # fmt: skip
    return ((drawn.float() + 1) / 2).clamp(0, 1)


def with_swg(model: ModelPatcher, scale: float, tile: int = 256) -> ModelPatcher:
    """The model with SWG."""
    return SlidingWindowGuidance.execute(model, scale, tile, 0, 0.0, 1.0).result[0]


def shapes(image: Tensor) -> Tensor:
    """How many connected shapes there are on the ground of each picture, (b,). One was asked for."""
    ground = image.flatten(2).median(2).values[..., None, None]
    mask = ((image - ground).abs().amax(1) > 0.3).float()
    label = torch.arange(1, mask[0].numel() + 1).view(mask.shape[1:]).float() * mask
    while True:
        spread = F.max_pool2d(label[:, None], 3, 1, 1)[:, 0] * mask
        if torch.equal(spread, label):
            break
        label = spread
    return torch.tensor([int((one[one > 0].unique(return_counts=True)[1] >= PIXELS_OF_A_SHAPE).sum()) for one in label])


# --- prompts without CFG ---


def _check_one_batch(count: int) -> None:
    """Raises ValueError if there are more pictures than are sampled at once.

    Texts and pictures of a node belong to the rows of one batch, so the next batch would get those of the first.
    """
    if count > AT_ONCE:
        raise ValueError(f"at most {AT_ONCE} pictures have texts or pictures of their own, but there are {count}")


def free_words(count: int) -> Tensor:
    """Words (count, slots) that are all unsaid."""
    return torch.full((count, len(SLOTS)), -1)


def colours_drawn(model: ModelPatcher, table: Tensor, count: int) -> Tensor:
    """The colours (count,) that the model draws without words."""
    return judge(sample(model, table, free_words(count), FEW, FREE_SEED)).words[:, COLOUR]


def colours_kept(model: ModelPatcher, table: Tensor, before: Tensor, shift: int, **settings: float) -> float:
    """The share of pictures without words that keep their colours `before` (b,) if the negative of NAG names these.

    With a `shift` it names the colours that are so many places further in the list, for comparison.
    """
    _check_one_batch(len(before))
    negative = free_words(len(before))
    negative[:, COLOUR] = (before + shift) % len(SLOTS["colour"])
    chosen = {"scale": 4.0, "tau": 2.5, "alpha": 0.5, **settings}
    prompt = conditioning(table, negative)
    steered = NormalizedAttentionGuidance.execute(model, prompt, **chosen, start_percent=0.0, end_percent=1.0).result[0]
    return (colours_drawn(steered, table, len(before)) == before).float().mean().item()


def with_pladis(model: ModelPatcher, scale: float) -> ModelPatcher:
    """The model with PLADIS."""
    return SparseCrossAttention.execute(model, scale, 0.0, 1.0).result[0]


# --- a weaker model ---


def checks(model: ModelPatcher, table: Tensor, words: Tensor, strength: float, scale: float) -> float:
    """How strong the checked texture is in pictures of words (b, slots), 1 as it was taught.

    A style LoRA of `strength` draws them, steered away from the model without it.
    """
    styled = with_style(model, StyleTask.file, strength)
    steered = WeakModelGuidance.execute(styled, model, scale, 0.0, 1.0).result[0]
    asked = words.clone()
    asked[:, TEXTURE] = CHECKED
    bright = sample(steered, table, asked, FEW).mean(1)
    steep = bright[:, 2:-2] - (bright[:, 4:] + bright[:, :-4]) / 2
    strengths = (steep * PATTERNS[CHECKED, 2:-2]).flatten(1).median(1).values / 2
    return strengths.mean().item() / TEXTURE_AMPLITUDE


# --- high CFG ---


def corrected(model: ModelPatcher) -> dict[str, ModelPatcher]:
    """The model with each correction of CFG, at settings for pictures of 32 cells and a high CFG."""
    return {
        "plain": model,
        "APG": AdaptiveProjectedGuidance.execute(model, 0.0, 3.0, 0.0, 0.0, 1.0).result[0],
        "FDG": FrequencyDecoupledGuidance.execute(model, 0.3, 1.0, 2, 0.0, 1.0).result[0],
        "CFG-Zero*": CFGZeroStar.execute(model, 0, 0.0, 1.0).result[0],
    }


def clipped(image: Tensor) -> float:
    """The share of numbers in pictures that are clipped to black or to full."""
    return ((image <= 0.004) | (image >= 0.996)).float().mean().item()


# --- a picture to be like ---


def references(count: int) -> Tensor:
    """Drawn pictures (count, 3, SIZE, SIZE) in 0..1."""
    return render(draw(count, torch.Generator().manual_seed(5))).image


def with_image(model: ModelPatcher, image: Tensor, loss: Loss, scale: float) -> ModelPatcher:
    """The model with Image Guidance towards pictures (b, 3, SIZE, SIZE)."""
    _check_one_batch(len(image))
    return ImageGuidance.execute(model, loss, scale, 0.0, 1.0, image=image.movedim(1, -1)).result[0]


def distance(image: Tensor, wanted: Tensor, loss: Loss) -> float:
    """The root mean square of a loss between pictures (b, 3, SIZE, SIZE), averaged over them."""
    numbers = image[0].numel()
    pairs = zip((image * 2 - 1).split(1), (wanted * 2 - 1).split(1), strict=True)
    return sum((2 * LOSSES[loss](a, b).item() / numbers) ** 0.5 for a, b in pairs) / len(image)
