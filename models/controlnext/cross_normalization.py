"""Cross Normalization of ControlNeXt (2408.06070): a control feature takes on the statistics of the feature it joins.

    CN(c, h) = (c - mean(c)) / (std(c) + eps) * std(h) + mean(h)

as the official code has it. The paper divides by the statistics of h instead. Mean and standard deviation are those of
one image over channels, height and width, and the standard deviation is unbiased. The part that depends on c alone is
computed once. The rest is two numbers per image. At gain 1 the mean of h + CN is twice that of h: the weights were
trained so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PER_IMAGE = (1, 2, 3)
CONSTANT = 1e-6  # if the deviation of a feature is a smaller share of its mean, it is rounding


class Normalization(NamedTuple):
    """The settings of Cross Normalization in which the released variants differ."""

    pool_first: bool
    eps: float


def standardise(control: Tensor, size: tuple[int, int], normalization: Normalization) -> Tensor:
    """The control (b, c, height, width) with mean 0 and deviation 1, pooled to `size`: (b, c, h, w).

    The result is in single precision or better. A constant feature has no deviation and becomes 0. Pooling is linear,
    so it needs no statistics of h, whether it comes before or after the standardisation.
    """
    control = control.to(torch.promote_types(control.dtype, torch.float32))
    if normalization.pool_first:
        control = functional.adaptive_avg_pool2d(control, size)
    std, mean = torch.std_mean(control, PER_IMAGE, keepdim=True)
    constant = std <= CONSTANT * mean.abs().clamp(min=1)
    control = torch.where(constant, 0, (control - mean) / (std + normalization.eps))
    return control if normalization.pool_first else functional.adaptive_avg_pool2d(control, size)


def match_statistics(control: Tensor, feature: Tensor) -> Tensor:
    """The standardised control (b or 1, c, h, w) with the mean and deviation of each image of feature (b, c, h, w).

    The result is (b, c, h, w).
    """
    std, mean = torch.std_mean(feature.to(control.dtype), PER_IMAGE, keepdim=True)
    return torch.addcmul(mean, control, std)
