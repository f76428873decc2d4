"""Prompt Diffusion (2305.01115) for the demo model: an example pair shows what is to be done with another picture.

The six tasks are those of the paper: from a picture to its mask, depth or edges, and back. Only the pair tells which of
the three maps is wanted, so the network has to learn to read it.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ops
import torch
from torch import Tensor, nn

from ...models.prompt_diffusion.network import Stems
from ..world.model import start_as_torch_does
from ..world.scenes import Views, draw, draw_words, render
from .control_net import as_hint, controlled, copied_encoder
from .controlnext import UNSAID
from .controlnext_numbers import HINTS, hints_of
from .data import Batch, draw_batch, mixed_precision
from .frozen import FrozenBase
from .prompt_diffusion_numbers import FILE
from .trainer import Plan

NO_TEXT, NO_TEXT_NO_PAIR, NO_PAIR = 0.05, 0.10, 0.15  # cumulated shares of what is dropped, as in the paper
STEMS = {"pair": "input_hint_block", "query": "input_cond_block"}  # as the authors' file has them
LEVELS = 2  # noise levels at which each hint is asked for


class PromptDiffusionTask:
    """Trains a Prompt Diffusion."""

    name = "prompt-diffusion"
    what = "Prompt Diffusion for six tasks: a picture to its mask, depth or edges, and back, as an example shows it."
    file = FILE
    plan = Plan(steps=800, batch=16, average=0.995)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        self.network = copied_encoder(self.base, hint_channels=9)
        self.network.input_hint_block = _AsGiven()
        stems = Stems(self.network.model_channels, comfy.ops.disable_weight_init, device=device, dtype=torch.float32)
        self.stems = stems.apply(start_as_torch_does).to(memory_format=torch.channels_last)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        stems = {f"{STEMS[stem]}.{rest}": value for name, value in self.stems.named_parameters()
                 for stem, _, rest in [name.partition(".")]}  # fmt: skip
        return {f"control_model.{name}": value for name, value in [*self.network.named_parameters(), *stems.items()]}

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        count = batch // LEVELS  # the stems take most of the time, so their features serve several noise levels
        asked = draw_batch(count, generator, unsaid=UNSAID)
        example = render(draw(count, generator, draw_words(count, generator)))
        kinds = torch.randint(len(HINTS), (count,), generator=generator)
        to_map = torch.rand(count, generator=generator) < 0.5
        source, target = ends(example, kinds, to_map)
        query, wanted = ends(asked.views, kinds, to_map)
        dropped = torch.rand(count, generator=generator)
        silent = to_map | (dropped < NO_TEXT_NO_PAIR)
        pair = torch.cat([source, target], 1) * 2 - 1
        pair[(dropped >= NO_TEXT) & (dropped < NO_PAIR)] = 0
        prompt = torch.where(silent[:, None], -1, asked.prompt)
        drawn = Batch(
            asked.scenes, asked.views._replace(image=wanted.repeat(LEVELS, 1, 1, 1)), prompt.repeat(LEVELS, 1)
        )
        with mixed_precision(self.base.device):
            hint = self.stems(as_hint(torch.cat([query * 2 - 1, pair], 1)).to(self.base.device))
        hint, context = hint.repeat(LEVELS, 1, 1, 1), self.base.context(drawn)
        return self.base.loss(drawn, generator, {}, controlled(self.network, hint, context))


class _AsGiven(nn.Module):
    """Takes the place of the stems in the network. The hint that it passes on is their output."""

    def forward(self, hint: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return hint


def ends(views: Views, kinds: Tensor, to_map: Tensor) -> tuple[Tensor, Tensor]:
    """The source and the target of each task, both (b, 3, SIZE, SIZE).

    `kinds` (b,) are the kinds of map, and `to_map` (b,) tells whether the map is the target.
    """
    maps = hints_of(views)[kinds, torch.arange(len(kinds))]
    forwards = to_map[:, None, None, None]
    return torch.where(forwards, views.image, maps), torch.where(forwards, maps, views.image)
