"""A style that the base model does not know, the checked texture, as a LoRA in the format that the host loads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..world.model import WEIGHTS
from .data import UNSAID, draw_batch
from .frozen import FrozenBase
from .trainer import Plan

RANK = 4
LORA_PREFIX = "diffusion_model."


class StyleTask:
    """Trains a LoRA for the checked texture."""

    name = "checked"
    what = "A LoRA of rank 4 over all kernels and matrices of the base: the checked texture, which the base never saw."
    file = WEIGHTS / "loras" / "reins-demo-checked.safetensors"
    plan = Plan(steps=800, batch=16, rate=2e-3, warm_up=20, average=0.99)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        weights = {name: value for name, value in self.base.unet.state_dict().items() if value.ndim > 1}
        self.frozen = weights
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, value in weights.items():
            inputs = value.shape[1:]  # of a kernel: channels, height and width
            down = torch.randn(RANK, *inputs, device=device) / inputs.numel() ** 0.5
            self.down[flat(name)] = nn.Parameter(down)
            self.up[flat(name)] = nn.Parameter(torch.zeros(len(value), RANK, *[1] * len(inputs[1:]), device=device))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        named = {}
        for name in self.frozen:
            stem = LORA_PREFIX + name.removesuffix(".weight")
            named[f"{stem}.lora_down.weight"] = self.down[flat(name)]
            named[f"{stem}.lora_up.weight"] = self.up[flat(name)]
        return named

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        # the word is often left out, so that the style comes from the weights and not from the word alone
        drawn = draw_batch(batch, generator, texture="checked", unsaid=(*[UNSAID] * 5, 0.5))
        changed = {
            name: value + (self.up[flat(name)].flatten(1) @ self.down[flat(name)].flatten(1)).view_as(value)
            for name, value in self.frozen.items()
        }
        return self.base.loss(drawn, generator, changed)


def flat(name: str) -> str:
    """A parameter's name as torch allows it in a dictionary of parameters."""
    return name.replace(".", "/")
