"""LPIPS (1801.03924), version 0.1: how different two pictures look, by the features of a network for classification.

Parameters are named as in torchvision's AlexNet and VGG16 (`features.0.weight`), those of the five linear layers as in
the package lpips, without the part that tells of dropout (`lin0.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .foreign_files import few

# ImageNet's mean and deviation, for pictures in -1..1: what the package lpips calls its scaling layer
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
LAYERS = 5
SMALLEST = 64  # pixels of the patches that the linear layers were fitted on


class Conv(NamedTuple):
    """A convolution: its number among torchvision's `features`, its outputs and its form."""

    number: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Backbone(NamedTuple):
    """A network for classification, in five stages with a pooling before some. The end of each stage is compared."""

    name: str
    stages: tuple[tuple[Conv, ...], ...]
    pooled: tuple[bool, ...]
    pool: int  # the size of a pooling, whose stride is 2


ALEX = Backbone(
    "AlexNet",
    (
        (Conv(0, 64, 11, 4, 2),), (Conv(3, 192, 5, 1, 2),), (Conv(6, 384),), (Conv(8, 256),), (Conv(10, 256),),
    ),
    (False, True, True, False, False), 3,
)  # fmt: skip
VGG = Backbone(
    "VGG16",
    (
        (Conv(0, 64), Conv(2, 64)), (Conv(5, 128), Conv(7, 128)), (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
        (Conv(17, 512), Conv(19, 512), Conv(21, 512)), (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
    ),
    (False, True, True, True, True), 2,
)  # fmt: skip


class LPIPS(nn.Module):
    """The distance of two pictures: squared differences of unit features, weighted, averaged and summed over layers.

    Pictures are (b, 3, h, w) in -1..1, with 64 pixels or more on each side.
    """

    def __init__(
        self, backbone: Backbone, operations: ModuleType, device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.backbone = backbone
        convs = [conv for stage in backbone.stages for conv in stage]
        widths = [3, *(conv.channels for conv in convs)]
        self.features = nn.ModuleDict({
            str(conv.number): operations.Conv2d(before, after, conv.kernel, conv.stride, conv.padding, **made)
            for conv, (before, after) in zip(convs, pairwise(widths), strict=True)
        })  # fmt: skip
        for i, stage in enumerate(backbone.stages):
            self.add_module(f"lin{i}", operations.Conv2d(stage[-1].channels, 1, 1, bias=False, **made))

    def unit_features(self, x: Tensor) -> list[Tensor]:
        """The features (b, c, h, w) of the five stages for pictures x (b, 3, h, w), each cell a vector of length 1."""
        shift, scale = (x.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x, found = (x - shift) / scale, []
        for stage, pooled in zip(self.backbone.stages, self.backbone.pooled, strict=True):
            if pooled:
                x = functional.max_pool2d(x, self.backbone.pool, 2)
            for conv in stage:
                x = functional.relu(self.features[str(conv.number)](x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPS))
        return found

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The distances (b,) of unit features a (1 or b, c, h, w) and b (b, c, h, w), one of each for each stage."""
        layers = (getattr(self, f"lin{i}") for i in range(LAYERS))
        return sum(lin((of_a - of_b) ** 2).mean((1, 2, 3)) for lin, of_a, of_b in zip(layers, a, b, strict=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances (b,) of pictures a (1 or b, 3, h, w) and b (b, 3, h, w)."""
        return self.between(self.unit_features(a), self.unit_features(b))


class LPIPSFile(NamedTuple):
    """What a file holds: the kind of network, what makes it, and its weights by our names."""

    backbone: Backbone
    make: Callable[..., LPIPS]
    weights: Mapping[str, Tensor]


# The package's scaling layer holds constants, and torchvision's classifier is not read.
UNREAD = re.compile(r"(scaling_layer|classifier|avgpool)\..+")
WRITTEN = (  # how files name what we name otherwise
    (re.compile(r"(?:net\.)?slice[1-5]\.(\d+)\.(weight|bias)"), r"features.\1.\2"),
    (re.compile(r"(?:net\.)?features\.(\d+)\.(weight|bias)"), r"features.\1.\2"),
    (re.compile(r"lin(\d)(?:\.model\.[01])?\.weight"), r"lin\1.weight"),
    (re.compile(r"lins\.(\d)(?:\.model\.[01])?\.weight"), r"lin\1.weight"),
)
FIRST, LAST_OF_VGG, OF_SQUEEZE = "features.0.weight", "features.28.weight", re.compile(r".*\bsqueeze\.weight")


def parse_lpips(weights: Mapping[str, Tensor], name: str) -> LPIPSFile:
    """The LPIPS in the tensors of a file called `name`: by the names of the package lpips or those of torchvision.

    Raises ValueError if the file lacks the network or its linear layers, or holds something else.
    """
    bare = {key.removeprefix("module."): value for key, value in weights.items()}
    found = {_our_name(key): value for key, value in bare.items() if not UNREAD.fullmatch(key)}
    if any(OF_SQUEEZE.fullmatch(key) for key in bare):
        raise ValueError(f"{name} should hold LPIPS with AlexNet or VGG16, but its network is SqueezeNet. {ADVICE}")
    heads = [key for key in found if key.startswith("lin")]
    if heads and FIRST not in found:
        raise ValueError(
            f"{name} should hold a network and its five linear layers, but holds the linear layers alone. {ADVICE}"
        )
    if FIRST in found and not heads:
        raise ValueError(
            f"{name} should hold a network and its five linear layers (lin0 to lin4), but holds the network alone. "
            f"{ADVICE}"
        )
    if FIRST not in found:
        raise ValueError(
            f"{name} should hold LPIPS (a network and its five linear layers), but holds {few(bare) or 'nothing'}. "
            f"{ADVICE}"
        )
    backbone = VGG if LAST_OF_VGG in found else ALEX
    return LPIPSFile(backbone, partial(LPIPS, backbone), found)


ADVICE = "Make the file by demo/lpips_file.py, or choose another."


def _our_name(key: str) -> str:
    for written, ours in WRITTEN:
        if (match := written.fullmatch(key)) is not None:
            return match.expand(ours)
    return key
