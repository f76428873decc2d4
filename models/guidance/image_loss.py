"""Universal Guidance (2302.07121) in its cheap form: losses between two pictures, without the network's gradient.

Each loss is half a sum of squares over a batch, to which each picture adds by itself. The gradient of a picture is no
longer than its difference from the target. So a step of length 1 never overshoots, whatever the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import at_least_float32
from .blur import gaussian_blur

Loss = Literal["colour histogram", "low frequencies", "edges"]
BLUR = 1 / 8  # sigma of the blur that leaves the low frequencies, as a share of the shorter side
EDGE_GAIN = 1 / 8  # with it the gradient of the loss is no longer than the difference of the pictures


def colour_histogram(x: Tensor, target: Tensor) -> Tensor:
    """The loss between the distributions of each channel's values in x and target, both (b, c, h, w).

    It is half the squared 2-Wasserstein distance: how far the values have to move to be distributed as the target's.
    """
    return _squares(x.flatten(2).sort(-1).values - target.flatten(2).sort(-1).values.detach())


def low_frequencies(x: Tensor, target: Tensor) -> Tensor:
    """The loss between x and target, both (b, c, h, w), after a wide blur."""
    h, w = x.shape[-2:]
    sigma = max(BLUR * min(h, w), 0.5)
    kernel = int(6 * sigma + 1) | 1
    return _squares(gaussian_blur(x - target, sigma, (min(kernel, 2 * h - 1), min(kernel, 2 * w - 1))))


def edges(x: Tensor, target: Tensor) -> Tensor:
    """The loss between the steepness of x and target, both (b, c, h, w), whatever the direction of the slopes."""
    return _squares(steepness(x) - steepness(target))


def steepness(x: Tensor) -> Tensor:
    """The length (b, c, h, w) of each channel's gradient in x (b, c, h, w), from central differences."""
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
    """The gradient (b, c, h, w) of a loss at x (b, c, h, w) for a target (b, c, h, w).

    It is also computed inside the host's inference mode.
    """
    exact = at_least_float32(x.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        at, wanted = x.detach().clone().to(exact).requires_grad_(True), target.detach().clone().to(exact)
        return torch.autograd.grad(LOSSES[loss](at, wanted), at)[0].to(x.dtype)


def _squares(difference: Tensor) -> Tensor:
    return 0.5 * difference.square().sum()
