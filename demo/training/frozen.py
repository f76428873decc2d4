"""What every adapter stands on: the shipped base model, frozen, and the loss it is trained by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.utils
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...models.demo_model import BASE_FILE, UNET_PREFIX, WORDS_KEY, tokens
from ...patches.demo_model import demo_config
from .data import Batch, ask


class FrozenBase:
    """The base model's UNet in single precision, its words and its noise levels; nothing of it learns."""

    def __init__(self, device: torch.device, path: Path = BASE_FILE) -> None:
        weights = {name: value.float() for name, value in load_file(path).items()}
        model = demo_config().get_model({}, device=device)
        self.unet: nn.Module = model.diffusion_model
        self.unet.load_state_dict(comfy.utils.state_dict_prefix_replace(weights, {UNET_PREFIX: ""}, filter_keys=True))
        self.unet.requires_grad_(False).train()
        self.table = weights[WORDS_KEY].to(device)
        self.sigmas = model.model_sampling.sigmas.to(device)
        self.device = device

    def loss(
        self, batch: Batch, generator: torch.Generator, changed: Mapping[str, Tensor], high_noise: float = 1.0,
        **options: object,
    ) -> Tensor:  # fmt: skip
        """Mean squared error of v with some of the UNet's weights changed; `options` go to its forward."""
        asked = ask(batch.latent.to(self.device), self.sigmas, generator, high_noise)
        context = self.table[tokens(batch.said).to(self.device)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "mps"):
            answer = torch.func.functional_call(
                self.unet, dict(changed), (asked.x, asked.timestep, context), options
            )  # fmt: skip
        return (answer.float() - asked.target).pow(2).mean()
