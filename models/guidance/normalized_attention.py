"""Normalized Attention Guidance (2505.21179): text attention pushed away from that of the negative."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..precision import at_least_float32


def normalized_guidance(
    positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float, out: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The output (b, n, c) of a text attention, pushed away from the output for the negative.

    `positive` and `negative` (b, n, c) are extrapolated by `scale` (equation 7). The L1 norm of each token is held
    below `tau` times that of the positive (equations 8 and 9). `alpha` mixes that into the positive (equation 10).
    The result is written into `out` (b, n, c), if given. `out` may be `positive`.
    """
    exact = at_least_float32(positive.dtype)
    plain, away = positive.to(exact), negative.to(exact)
    guided = torch.lerp(away, plain, 1 + scale)
    # Equation 9 without tau, which is a number of the last sum, as alpha is: each operation is a launch on a GPU.
    # So both L1 norms are taken at once. On a CPU vector_norm takes up to six times as long.
    norm, guided_norm = torch.cat([plain, guided]).abs_().sum(-1, keepdim=True).chunk(2)
    # If both norms are 0 their ratio is no number, and fmin takes the other one.
    factor = torch.fmin(norm / guided_norm, _number(1 / tau, exact))
    mixed = torch.addcmul(plain * (1 - alpha), guided, factor, value=alpha * tau, out=out)
    return mixed.to(positive.dtype)


@lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """Returns a number as fmin takes it. It is on the CPU, for it has no axes, and of a type that all devices have.

    It is kept, for to make it takes as long as an operation. One that inference mode has made would bar gradients.
    """
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device="cpu")
