"""Muon: momentum whose update is made orthogonal, for matrices and convolution kernels (Jordan et al., 2024).

torch.optim.Muon only takes parameters of two dimensions. Here kernels (out, in, h, w) are seen as (out, in * h * w).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of the reference implementation
MOMENTUM = 0.95


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) made orthogonal: about U V^T of U S V^T, with singular values between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix. Wide and tall matrices move by equal amounts per output."""

    def __init__(self, params: list[dict], lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Changes the parameters by one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                update = orthogonalise(ahead) * max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])
