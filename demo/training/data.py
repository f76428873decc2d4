"""Batches of drawn scenes with prompts for them, and what the network is to predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..world.scenes import SLOTS, Scenes, Views, draw, draw_words, render

UNSAID = 0.12  # chance that a slot says nothing, so that partial prompts work
ALL_UNSAID = 0.10  # chance that the whole prompt does, for CFG


class Batch(NamedTuple):
    """b drawn scenes. `prompt` (b, slots) holds their words, with -1 in the slots that are unsaid."""

    scenes: Scenes
    views: Views
    prompt: Tensor

    @property
    def latent(self) -> Tensor:
        """The pictures (b, 3, SIZE, SIZE) in -1..1."""
        return self.views.image * 2 - 1


def draw_batch(
    count: int, generator: torch.Generator, texture: str | None = None, unsaid: Sequence[float] | float = UNSAID
) -> Batch:
    """A batch as the base model sees it. `texture` replaces its textures, `unsaid` may differ per slot."""
    words = draw_words(count, generator)
    if texture is not None:
        words[:, -1] = SLOTS["texture"].index(texture)
    scenes = draw(count, generator, words)
    prompt = words.clone()
    prompt[torch.rand(prompt.shape, generator=generator) < torch.as_tensor(unsaid)] = -1
    prompt[torch.rand(count, generator=generator) < ALL_UNSAID] = -1
    return Batch(scenes, render(scenes), prompt)


class Question(NamedTuple):
    """What the network sees, x (b, 3, h, w) and timestep (b,), and the v that it should predict (b, 3, h, w)."""

    x: Tensor
    timestep: Tensor
    target: Tensor
    sigma: Tensor


def ask(latent: Tensor, sigmas: Tensor, generator: torch.Generator, high_noise: float = 1.0) -> Question:
    """A question for each latent (b, 3, h, w), at noise levels spread evenly over the table `sigmas` (levels,).

    A `high_noise` below 1 asks more often at high noise, and above 1 at low noise. v is as in Salimans and Ho, arXiv
    2202.00512, with alpha = 1 / sqrt(1 + sigma^2).
    """
    count, levels = len(latent), len(sigmas)
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    index = (place**high_noise * levels).long().clamp(max=levels - 1)
    noise = torch.randn(latent.shape, generator=generator).to(latent.device)
    index = index.to(sigmas.device)
    sigma = sigmas[index][:, None, None, None]
    length = (1 + sigma * sigma).sqrt()
    return Question((latent + sigma * noise) / length, index.float(), (noise - sigma * latent) / length, sigma)


def ask_flow(latent: Tensor, shift: float, generator: torch.Generator) -> Question:
    """A question for each latent (b, 3, h, w), whose v is the velocity of the straight flow from noise to pictures.

    The noise levels are spread evenly in time and shifted as the host does (Esser et al., arXiv 2403.03206, section
    5.3.2). So they are as dense as the steps of a sampler.
    """
    count = len(latent)
    time = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    level = shift * time / (1 + (shift - 1) * time)
    noise = torch.randn(latent.shape, generator=generator).to(latent.device)
    sigma = level.to(latent.device)[:, None, None, None]
    return Question(torch.lerp(latent, noise, sigma), 1000 * sigma.flatten(), noise - latent, sigma)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Mixed precision with bfloat16, if the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "mps")


def v_loss(answer_to: Callable[[Tensor, Tensor], Tensor], asked: Question) -> Tensor:
    """The mean squared error of the v that a network predicts from (x, timestep)."""
    with mixed_precision(asked.x.device):
        answer = answer_to(asked.x, asked.timestep)
    return (answer.float() - asked.target).pow(2).mean()
