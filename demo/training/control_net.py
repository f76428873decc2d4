"""A ControlNet (2302.05543) for the demo model, to compare ControlNeXt with: it has the same hints and the same words.

The UNet is locked. A copy of its encoder learns, and its features go through convolutions that begin as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from torch import Tensor, nn
from torch.nn import functional

from ...models.numbers import CELL
from ..world.model import UNET, start_as_torch_does
from .control_net_numbers import FILE
from .controlnext import UNSAID
from .controlnext_numbers import HINTS, hints_of
from .data import Question, draw_batch
from .frozen import FrozenBase
from .trainer import Plan

DECODER = ("out_channels", "transformer_depth_output")  # settings of the decoder, which a ControlNet lacks


class ControlNetTask:
    """Trains a ControlNet."""

    name = "controlnet"
    what = "A classic ControlNet for masks, depth and edges: a copy of the encoder that learns beside the locked UNet."
    file = FILE
    plan = Plan(steps=700, batch=16, average=0.995)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        self.network = copied_encoder(self.base, hint_channels=3)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn = draw_batch(batch, generator, unsaid=UNSAID)
        kinds = torch.randint(len(HINTS), (batch,), generator=generator)
        hint = as_hint(hints_of(drawn.views)[kinds, torch.arange(batch)]).to(self.base.device)
        return self.base.loss(drawn, generator, {}, controlled(self.network, hint, self.base.context(drawn)))


def copied_encoder(base: FrozenBase, hint_channels: int) -> ControlNet:
    """The host's ControlNet with the weights of the base's encoder, and with zeros in its output convolutions."""
    settings = {name: value for name, value in UNET.items() if name not in DECODER}
    network = ControlNet(
        **settings, hint_channels=hint_channels, dtype=torch.float32, device=base.device,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    network.apply(start_as_torch_does)
    weights = base.unet.state_dict()
    network.load_state_dict({name: weights.get(name, value) for name, value in network.state_dict().items()})
    for silent in (network.zero_convs, network.middle_block_out):
        for parameter in silent.parameters():
            nn.init.zeros_(parameter)
    return network.to(memory_format=torch.channels_last)  # half the time in the layers that read the hint


def as_hint(pictures: Tensor) -> Tensor:
    """Pictures (b, c, SIZE, SIZE), enlarged to eight pixels for a cell as the host does."""
    return functional.interpolate(pictures, scale_factor=CELL, mode="nearest")


def controlled(
    network: ControlNet, hint: Tensor, context: Tensor
) -> Callable[[Question], Mapping[str, object]]:  # fmt: skip
    """Makes the arguments that go to the UNet with a question: the control for its noisy pictures."""
    return lambda asked: {"control": network(asked.x, hint, asked.timestep, context)}
