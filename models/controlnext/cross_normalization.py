"""Cross Normalization of ControlNeXt (2408.06070): a control feature takes on the statistics of the feature it joins.

    CN(c, h) = (c - mean(c)) / (std(c) + eps) * std(h) + mean(h)

as the official code has it (the paper divides by the main branch's statistics instead). Mean and standard deviation
are those of one image over channels, height and width, the latter unbiased. What depends on c alone is made once; the
rest is two numbers per image. At gain 1 the mean of h + CN doubles: the weights were trained so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PER_IMAGE = (1, 2, 3)
CONSTANT = 1e-6  # below this part of its mean, a feature's deviation is rounding


class Normalization(NamedTuple):
    """What differs between the released variants."""

    pool_first: bool
    eps: float


def standardise(control: Tensor, size: tuple[int, int], normalization: Normalization) -> Tensor:
    """(b, c, h, w) of mean 0 and deviation 1, at least in single precision, from control (b, c, any, any).

    A constant feature has no deviation to scale and becomes 0. Averaging is linear, so pooling may come before the
    statistics of h are known in either normalization.
    """
    control = control.to(torch.promote_types(control.dtype, torch.float32))
    if normalization.pool_first:
        control = functional.adaptive_avg_pool2d(control, size)
    std, mean = torch.std_mean(control, PER_IMAGE, keepdim=True)
    constant = std <= CONSTANT * mean.abs().clamp(min=1)
    control = torch.where(constant, 0, (control - mean) / (std + normalization.eps))
    return control if normalization.pool_first else functional.adaptive_avg_pool2d(control, size)


def match_statistics(control: Tensor, feature: Tensor) -> Tensor:
    """(b, c, h, w): a standardised control (b or 1, c, h, w) with mean and deviation of each image of the feature."""
    std, mean = torch.std_mean(feature.to(control.dtype), PER_IMAGE, keepdim=True)
    return torch.addcmul(mean, control, std)
