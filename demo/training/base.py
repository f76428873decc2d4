"""The base model: the host's own UNet and a table of words, trained from scratch on drawn scenes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..world.host_model import demo_config
from ..world.model import BASE_FILE, CONTEXT, UNET_PREFIX, VOCABULARY, WORDS_KEY, initialise, tokens
from .data import ask, draw_batch, v_loss
from .trainer import Plan

PLAN = Plan(steps=5000, batch=32)
HIGH_NOISE = 0.75  # below 1 asks more often at high noise, which decides the layout. Details are learnt quickly.


class BaseTask:
    """Trains the base model: its UNet and its table of words."""

    name = "base"
    what = "The base model: ComfyUI's UNet, small, with a table of words; one coloured shape on a plain ground, 32x32."
    file = BASE_FILE
    plan = PLAN

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.manual_seed(0)
        model = demo_config().get_model({}, device=device)
        self.unet = initialise(model.diffusion_model).train()
        self.words = nn.Embedding(len(VOCABULARY), CONTEXT, device=device)
        self.sigmas = model.model_sampling.sigmas.to(device)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        unet = {UNET_PREFIX + name: value for name, value in self.unet.named_parameters()}
        return {**unet, WORDS_KEY: self.words.weight}

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn = draw_batch(batch, generator)
        asked = ask(drawn.latent.to(self.device), self.sigmas, generator, HIGH_NOISE)
        context = self.words(tokens(drawn.prompt).to(self.device))
        return v_loss(lambda x, timestep: self.unet(x, timestep, context), asked)
