"""Normalized Attention Guidance (2505.21179): text attention pushed away from that of the negative."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import at_least_float32


def normalized_guidance(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """The output (b, n, c) of a text attention, pushed away from the output for the negative.

    `positive` and `negative` (b, n, c) are extrapolated by `scale` (equation 7). The L1 norm of each token is held
    below `tau` times that of the positive (equations 8 and 9). `alpha` mixes that into the positive (equation 10).
    """
    exact = at_least_float32(positive.dtype)
    plain, away = positive.to(exact), negative.to(exact)
    guided = torch.lerp(away, plain, 1 + scale)
    # Equation 9 without tau, which is a number of the last sum, as alpha is: each operation is a launch on a GPU.
    # If both norms are 0 their ratio is no number, and fmin takes the other one.
    factor = torch.fmin(_norm(plain) / _norm(guided), torch.tensor(1 / tau, dtype=exact, device="cpu"))
    return torch.addcmul(plain * (1 - alpha), guided, factor, value=alpha * tau).to(positive.dtype)


def _norm(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, 1, -1, keepdim=True)
