"""A ControlNeXt (2408.06070) for the demo model: one network for masks, depth and edges, in the official file's form.

As in the paper, a small part of the UNet learns with it: the projections after its attentions, as increments. For the
comparison, Cross Normalization can be exchanged for what it replaces, a convolution of zeros (ControlNet, 2302.05543).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models.controlnext.cross_normalization import match_statistics, standardise
from ...models.controlnext.files import VARIANTS
from ...models.controlnext.network import ControlNeXt, Layout, Stage
from ...models.numbers import CELL
from ...nodes.controlnext.hint import stretched
from ..world.model import start_as_torch_does
from ..world.scenes import SIZE
from .controlnext_numbers import FILE, HINTS, hints_of
from .data import Question, draw_batch
from .frozen import FrozenBase
from .trainer import Plan

LAYOUT = Layout(
    stem=(8, 8, 16), stages=(Stage(16, 16, 4), Stage(16, 32, 8)), time=(64, 64), outputs=64, residual_middle=True,
    pooled_stem=False,
)  # fmt: skip
VARIANT = VARIANTS["sd15-training"]
BLOCK = ("input", 1)  # the first halving of the demo model, where that variant adds its feature
UNSAID = (0.3, 0.12, 0.7, 0.7, 0.12, 0.12)  # much of shape, place and size is left to the hint

Join = Callable[[Tensor, Tensor], Tensor]


class ControlNeXtTask:
    """Trains a ControlNeXt. `join` is what joins its feature to the UNet's, Cross Normalization if it is None."""

    name = "controlnext"
    what = "A ControlNeXt for masks, depth and edges, with increments for the projections after the attentions."
    file = FILE
    plan = Plan(steps=1600, batch=16, average=0.995)

    def __init__(self, device: torch.device, join: Join | None = None) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        self.network = ControlNeXt(LAYOUT, comfy.ops.disable_weight_init, device=device)
        self.join = join or cross_normalised
        self.network.apply(start_as_torch_does)
        if join is zero_convolution:
            nn.init.zeros_(self.network.mid_convs[1].weight)
            nn.init.zeros_(self.network.mid_convs[1].bias)
        self.frozen = {name: value for name, value in self.base.unet.state_dict().items() if ".to_out." in name}
        self.increments = {name: nn.Parameter(torch.zeros_like(value)) for name, value in self.frozen.items()}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            **{f"controlnext.{name}": value for name, value in self.network.named_parameters()},
            **{f"unet.{name}": value for name, value in self.increments.items()},
        }

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn = draw_batch(batch, generator, unsaid=UNSAID)
        kinds = torch.randint(len(HINTS), (batch,), generator=generator)
        hint = hints_of(drawn.views)[kinds, torch.arange(batch)]
        prepared = self.network.prepare(as_pixels(hint).to(self.base.device))

        def steered(asked: Question) -> Mapping[str, object]:
            control = self.network(prepared, asked.timestep)

            def add(feature: Tensor, options: Mapping[str, object]) -> Tensor:
                return feature + self.join(control, feature).to(feature) if options["block"] == BLOCK else feature

            return {"transformer_options": {"patches": {"input_block_patch_after_skip": [add]}}}

        changed = {name: value + self.increments[name] for name, value in self.frozen.items()}
        return self.base.loss(drawn, generator, changed, steered)


def as_pixels(hint: Tensor) -> Tensor:
    """Hints (b, 3, SIZE, SIZE), enlarged to eight pixels for a cell as the node does."""
    return stretched(hint, CELL * SIZE, CELL * SIZE)


def cross_normalised(control: Tensor, feature: Tensor) -> Tensor:
    """The control (b, c, any, any) with Cross Normalization for the feature (b, c, h, w): (b, c, h, w)."""
    return match_statistics(standardise(control, tuple(feature.shape[-2:]), VARIANT.normalization), feature)


def zero_convolution(control: Tensor, feature: Tensor) -> Tensor:
    """The control (b, c, any, any) of a network whose last convolution began as zeros, pooled to (b, c, h, w)."""
    return functional.adaptive_avg_pool2d(control, tuple(feature.shape[-2:]))
