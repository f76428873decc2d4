"""The transformer: the host's own class for SD3, trained from scratch as a rectified flow on drawn scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...engine.loading import read_file
from ..world.dit import DIT_FILE, initialise_dit
from ..world.host_model import dit_config
from ..world.model import BASE_FILE, UNET_PREFIX, WORDS_KEY, pooled_text, tokens
from .data import ask_flow, draw_batch
from .trainer import Plan


class DiTTask:
    """Trains the transformer. Its words are those of the base model, as a released model takes its text encoder."""

    name = "dit"
    what = (
        "A diffusion transformer: ComfyUI's class for SD3, small, as a rectified flow, with the base model's table of "
        "words; the same world as the base model's."
    )
    file = DIT_FILE
    plan = Plan(steps=2500, batch=32)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.manual_seed(0)
        model = dit_config().get_model({}, device=device)
        self.network = initialise_dit(model.diffusion_model).train()
        self.shift = model.model_sampling.shift
        self.table = read_file(BASE_FILE)[WORDS_KEY].float().to(device)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {UNET_PREFIX + name: value for name, value in self.network.named_parameters()}

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn = draw_batch(batch, generator)
        asked = ask_flow(drawn.latent.to(self.device), self.shift, generator)
        context = self.table[tokens(drawn.prompt).to(self.device)]
        pooled = pooled_text()["pooled_output"].to(self.device).expand(batch, -1)
        options = {"optimized_attention_override": fused_attention}
        answer = self.network(asked.x, asked.timestep, context, pooled, transformer_options=options)
        return (answer - asked.target).pow(2).mean()


def fused_attention(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, **settings: object) -> Tensor:
    """The attention (b, tokens, heads * d) by torch's own kernel. The host takes a slower one on a CPU."""
    q, k = (rearrange(part, "b n (heads d) -> b heads n d", heads=heads) for part in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, rearrange(v, "b n heads d -> b heads n d"))
    return rearrange(mixed, "b heads n d -> b n (heads d)")
