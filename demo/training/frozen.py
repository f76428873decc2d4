"""The shipped base model, frozen, and the loss by which adapters on it are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import comfy.utils
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...engine.loading import read_file
from ..world.host_model import demo_config
from ..world.model import BASE_FILE, UNET_PREFIX, WORDS_KEY, tokens
from .data import Batch, Question, ask, v_loss


class FrozenBase:
    """The base model's UNet in single precision, its words and its noise levels. None of it learns."""

    def __init__(self, device: torch.device, path: Path = BASE_FILE) -> None:
        weights = {name: value.float() for name, value in read_file(path).items()}
        model = demo_config().get_model({}, device=device)
        self.unet: nn.Module = model.diffusion_model
        self.unet.load_state_dict(comfy.utils.state_dict_prefix_replace(weights, {UNET_PREFIX: ""}, filter_keys=True))
        self.unet.requires_grad_(False).train()
        self.table = weights[WORDS_KEY].to(device)
        self.sigmas = model.model_sampling.sigmas.to(device)
        self.device = device

    def loss(
        self, batch: Batch, generator: torch.Generator, changed: Mapping[str, Tensor],
        steered: Callable[[Question], Mapping[str, object]] = lambda asked: {}, high_noise: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """The mean squared error of v. `changed` replaces weights of the UNet, `steered` gives it more arguments."""
        asked = ask(batch.latent.to(self.device), self.sigmas, generator, high_noise)
        context, more = self.context(batch), dict(steered(asked))
        return v_loss(
            lambda x, timestep: functional_call(self.unet, dict(changed), (x, timestep, context), more), asked
        )

    def context(self, batch: Batch) -> Tensor:
        """The prompt of each picture, as the UNet reads it: (b, tokens, width)."""
        return self.table[tokens(batch.prompt).to(self.device)]
