"""LPIPS for the tests: weights drawn by chance, pictures by a formula, the distance written from the paper, and files.

REINS_LPIPS names a folder with the real weights, as demo/lpips_file.py makes them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from reins.models.lpips import ALEX, Backbone
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

REAL = {"AlexNet": "lpips-alex.safetensors", "VGG16": "lpips-vgg.safetensors"}


def drawn(backbone: Backbone = ALEX, seed: int = 0) -> dict[str, Tensor]:
    """Weights by our names, of a size that keeps the features alive. Those of the linear layers are not negative."""
    generator, tensors, before = torch.Generator().manual_seed(seed), {}, 3
    for i, stage in enumerate(backbone.stages):
        for conv in stage:
            shape = (conv.channels, before, conv.kernel, conv.kernel)
            gain = (2 / (before * conv.kernel**2)) ** 0.5
            tensors[f"features.{conv.number}.weight"] = torch.randn(shape, generator=generator) * gain
            tensors[f"features.{conv.number}.bias"] = 0.1 * torch.randn(conv.channels, generator=generator)
            before = conv.channels
        tensors[f"lin{i}.weight"] = torch.rand((1, before, 1, 1), generator=generator)
    return tensors


def picture(h: int, w: int) -> Tensor:
    """A picture (1, 3, h, w) in -1..1 that is the same on every system."""
    y, x = torch.meshgrid(torch.arange(h).double() / 64, torch.arange(w).double() / 64, indexing="ij")
    red, green = torch.sin(6 * x + 3 * y**2) * torch.cos(5 * y), torch.sin(9 * x * y + 1)
    return torch.stack([red, green, torch.cos(4 * x - 7 * y) * torch.sin(11 * x)])[None].float()


def grain(h: int, w: int, deviation: float) -> Tensor:
    """What looks like noise (1, 3, h, w), but is the same on every system."""
    n = torch.arange(3 * h * w).double().reshape(1, 3, h, w)
    return (deviation * 2**0.5 * torch.sin(n * n * 0.37)).float()


def by_hand(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Equation 1 of the paper, with AlexNet as torchvision describes it: the distances (b,) of a and b (b, 3, h, w)."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(len(b), dtype=torch.float64)
    a, b = ((each.movedim(1, -1) + 1) / 2 for each in (a, b))
    a, b = (((each - mean) / deviation).movedim(-1, 1).double() for each in (a, b))
    strides, paddings, pooled = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2)
    for layer, number in enumerate((0, 3, 6, 8, 10)):
        weight, bias = (weights[f"features.{number}.{kind}"].double() for kind in ("weight", "bias"))
        if layer in pooled:
            a, b = (functional.max_pool2d(each, 3, 2) for each in (a, b))
        a, b = (functional.conv2d(each, weight, bias, strides[layer], paddings[layer]).relu() for each in (a, b))
        w = weights[f"lin{layer}.weight"].double().flatten()
        for i in range(len(b)):
            lengths = [each[min(i, len(each) - 1)].norm(dim=0) for each in (a, b)]
            unit_a, unit_b = (
                each[min(i, len(each) - 1)] / (length + 1e-10) for each, length in zip((a, b), lengths, strict=True)
            )
            total[i] += torch.einsum("c,chw->hw", w, (unit_a - unit_b) ** 2).mean()
    return total


def real_folder() -> Path:
    """The folder with the real weights. Without it the test is skipped."""
    folder = Path(os.environ.get("REINS_LPIPS", ""))
    if not (folder / REAL["AlexNet"]).is_file():
        pytest.skip(f"needs the weights of LPIPS: REINS_LPIPS names a folder with {REAL['AlexNet']}")
    return folder


def real(name: str) -> dict[str, Tensor]:
    """The real weights of a network, by the names of the package lpips. Without them the test is skipped."""
    path = real_folder() / REAL[name]
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder that REINS_LPIPS names")
    return load_file(path)


class SmallVAE:
    """Four channels of a cell for 8 x 8 pixels, and back. It cuts off what is no whole cell, as the host's do."""

    def encode(self, pixels):
        h, w = (size // 8 * 8 for size in pixels.shape[1:3])
        means = functional.avg_pool2d(pixels[:, :h, :w].movedim(-1, 1) * 2 - 1, 8)
        return torch.cat([means, means.mean(1, keepdim=True)], 1)

    def decode(self, latents):
        cells = functional.interpolate(latents[:, :3] + 0.3 * latents[:, 3:], scale_factor=8, mode="bilinear")
        return (cells / 2 + 0.5).clamp(0, 1).movedim(1, -1)
