"""ControlNeXt (2408.06070): a small convolutional network that turns a hint and a noise level into one feature.

The networks of all releases are this one with other widths and depths. `prepare` computes the part that does not depend
on the noise level, so that a run computes it once. In a network with a stem it is a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

STEM_GROUPS, MIDDLE_GROUPS = 2, 8
RESNET_EPS = 1e-6
MAX_PERIOD = 10_000  # of the sinusoids
Make = Callable[..., nn.Module]


class Stage(NamedTuple):
    """One residual block and the halving after it."""

    inputs: int
    outputs: int
    groups: int


class Layout(NamedTuple):
    """The widths of a control network. `stem` is empty if the hint goes straight into the first stage."""

    stem: tuple[int, ...]
    stages: tuple[Stage, ...]
    time: tuple[int, int]  # sinusoids, embedding
    outputs: int
    residual_middle: bool  # and normalised
    pooled_stem: bool


class Prepared(NamedTuple):
    """What does not depend on the noise level: input and first half of the first stage, both (b, c, h, w)."""

    x: Tensor
    hidden: Tensor


class ControlNeXt(nn.Module):
    """The control network. `operations` has Conv2d, Linear and GroupNorm. Parameters are named as in official files."""

    def __init__(
        self, layout: Layout, operations: type, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.layout = layout
        ops = Operations(operations, dtype, device)
        sinusoids, width = layout.time
        self.time_embedding = nn.ModuleDict(
            {"linear_1": ops.linear(sinusoids, width), "linear_2": ops.linear(width, width)}
        )
        if layout.stem:
            self.embedding = nn.Sequential(*ops.stem(layout.stem))
        self.down_res = nn.ModuleList(ResBlock(stage, width, ops) for stage in layout.stages)
        self.down_sample = nn.ModuleList(
            nn.ModuleDict({"conv": ops.conv(stage.outputs, stage.outputs, 3, stride=2, padding=1)})
            for stage in layout.stages
        )
        middle = layout.stages[-1].outputs
        make_middle = ops.normalised_middle if layout.residual_middle else ops.plain_middle
        self.mid_convs = nn.ModuleList([nn.Sequential(*make_middle(middle)), ops.conv(middle, layout.outputs, 1)])

    def prepare(self, image: Tensor, stem_padding: int = 1) -> Prepared:
        """What does not depend on the noise level, from hints (b, 3, 8 * h, 8 * w) in 0..1.

        `stem_padding` is 1, or 0 for the releases for SVD, whose stem loses the border.
        """
        x = image
        if self.layout.stem:
            for index, layer in enumerate(self.embedding):
                padded = index and isinstance(layer, nn.Conv2d)  # the first convolution pads by itself
                x = layer(functional.pad(x, [stem_padding] * 4) if padded else x)
            if self.layout.pooled_stem:
                x = functional.max_pool2d(x, 2)
        return Prepared(x, self.down_res[0].before_time(x))

    def forward(self, prepared: Prepared, timestep: Tensor) -> Tensor:
        """The control feature (b, outputs, h, w) at `timestep` (b or 1,), the same number that the UNet gets."""
        emb = sinusoids(timestep, self.layout.time[0]).to(prepared.x.dtype)
        emb = self.time_embedding["linear_2"](functional.silu(self.time_embedding["linear_1"](emb)))
        x = self.down_res[0].after_time(prepared.x, prepared.hidden, emb)
        x = self.down_sample[0]["conv"](x)
        for block, halve in zip(self.down_res[1:], self.down_sample[1:], strict=True):
            x = halve["conv"](block.after_time(x, block.before_time(x), emb))
        middle = self.mid_convs[0](x)
        return self.mid_convs[1](middle + x if self.layout.residual_middle else middle)


class ResBlock(nn.Module):
    """The residual block of diffusers (ResnetBlock2D), in two halves: the noise level enters between them."""

    def __init__(self, stage: Stage, time: int, ops: Operations) -> None:
        super().__init__()
        self.norm1 = ops.norm(stage.groups, stage.inputs, RESNET_EPS)
        self.conv1 = ops.conv(stage.inputs, stage.outputs, 3, padding=1)
        self.time_emb_proj = ops.linear(time, stage.outputs)
        self.norm2 = ops.norm(stage.groups, stage.outputs, RESNET_EPS)
        self.conv2 = ops.conv(stage.outputs, stage.outputs, 3, padding=1)
        self.conv_shortcut = ops.conv(stage.inputs, stage.outputs, 1) if stage.inputs != stage.outputs else None

    def before_time(self, x: Tensor) -> Tensor:
        """The first half (b, outputs, h, w) of x (b, inputs, h, w)."""
        return self.conv1(functional.silu(self.norm1(x)))

    def after_time(self, x: Tensor, hidden: Tensor, emb: Tensor) -> Tensor:
        """The block's output (b, outputs, h, w), from x (b, inputs, h, w), its first half and emb (b, time)."""
        hidden = hidden + self.time_emb_proj(functional.silu(emb))[:, :, None, None]
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + self.conv2(functional.silu(self.norm2(hidden)))


class Operations(NamedTuple):
    """Makes layers of the host on a device, in a type."""

    operations: type
    dtype: torch.dtype | None
    device: torch.device | None

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
        return self.operations.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, dtype=self.dtype, device=self.device
        )

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return self.operations.Linear(inputs, outputs, dtype=self.dtype, device=self.device)

    def norm(self, groups: int, width: int, eps: float = 1e-5) -> nn.Module:
        return self.operations.GroupNorm(groups, width, eps=eps, dtype=self.dtype, device=self.device)

    def stem(self, widths: Sequence[int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
            conv = self.conv(inputs, outputs, 3) if index else self.conv(inputs, outputs, 3, stride=2, padding=1)
            layers += [conv, self.norm(STEM_GROUPS, outputs), nn.ReLU()]
        return layers

    def plain_middle(self, width: int) -> list[nn.Module]:
        return [self.conv(width, width, 3, padding=1), nn.ReLU(), self.conv(width, width, 3, padding=1)]

    def normalised_middle(self, width: int) -> list[nn.Module]:
        first, relu, second = self.plain_middle(width)
        return [first, relu, self.norm(MIDDLE_GROUPS, width), second, self.norm(MIDDLE_GROUPS, width)]


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of timestep (b,) at falling frequencies: (b, width) (1706.03762, section 3.5)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
