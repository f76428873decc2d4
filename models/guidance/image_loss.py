"""Losses between two pictures for guidance without a network's gradient (the cheap form of 2302.07121).

Each is half a sum of squares, over each picture by itself, whose gradient is no longer than what separates the two:
a step of length 1 along it never overshoots, whatever the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian_blur

Loss = Literal["colour histogram", "low frequencies", "edges"]
BLUR = 1 / 8  # sigma of what counts as low, as a share of the shorter side
EDGE_GAIN = 1 / 8  # makes the gradient of the edges no longer than the picture's


def colour_histogram(x: Tensor, target: Tensor) -> Tensor:
    """How far each channel's values have to move to be distributed as the target's: the 2-Wasserstein distance."""
    return _squares(x.flatten(2).sort(-1).values - target.flatten(2).sort(-1).values.detach())


def low_frequencies(x: Tensor, target: Tensor) -> Tensor:
    """The difference of both pictures after a wide blur."""
    h, w = x.shape[-2:]
    sigma = max(BLUR * min(h, w), 0.5)
    kernel = int(6 * sigma + 1) | 1
    return _squares(gaussian_blur(x - target, sigma, (min(kernel, 2 * h - 1), min(kernel, 2 * w - 1))))


def edges(x: Tensor, target: Tensor) -> Tensor:
    """The difference of how steep both pictures are at each place, whatever the direction of the slope."""
    return _squares(steepness(x) - steepness(target))


def steepness(x: Tensor) -> Tensor:
    """The length of the gradient (central differences, repeated borders) of each channel, (b, c, h, w)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return (EDGE_GAIN**0.5) * (across.square() + down.square() + 1e-8).sqrt()


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "colour histogram": colour_histogram,
    "low frequencies": low_frequencies,
    "edges": edges,
}


def loss_gradient(x: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """The gradient of a loss at x (b, c, h, w); also inside the host's inference mode."""
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.inference_mode(False), torch.enable_grad():
        at, wanted = x.detach().clone().to(exact).requires_grad_(True), target.detach().clone().to(exact)
        return torch.autograd.grad(LOSSES[loss](at, wanted), at)[0].to(x.dtype)


def _squares(difference: Tensor) -> Tensor:
    return 0.5 * difference.square().sum()
