"""An IP-Adapter for the transformer, with the attention of InstantX's for Stable Diffusion 3.5, not its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count

import comfy.ops
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...engine.loading import read_file
from ...models.ip_adapter.time_resampler import TimeResampler
from ...models.ip_adapter.transformer_layers import SD3Layers, normed_again
from ..world.dit import DIT, DIT_FILE, HEADS, WIDTH
from ..world.host_model import dit_config, load_clip_vision
from ..world.model import BASE_FILE, CLIP_VISION_CONFIG, CLIP_VISION_FILE, UNET_PREFIX, WORDS_KEY, pooled_text, tokens
from .clip_vision import hidden_states
from .data import ask_flow
from .dit import fused_attention
from .dit_ip_adapter_numbers import FILE
from .ip_adapter import NO_IMAGE, draw_with_references, normalised
from .trainer import Plan

TOKENS = 8
DEPTH = 2
TIME_SINES = 64
LOUD = 4.0  # how loud the image's keys are at the start, so that 8 of them are heard among 256 of the picture
QUIET = 0.1  # and those of the picture


class DiTIPAdapterTask:
    """Trains the IP-Adapter."""

    name = "dit-ip-adapter"
    what = (
        "An IP-Adapter for the transformer, in the form of InstantX's for Stable Diffusion 3.5: eight tokens "
        "that change with the time of the sampler, in an attention together with the picture's own keys."
    )
    file = FILE
    plan = Plan(steps=1600, batch=32, matrix_rate=0.01, average=0.995)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        weights = {name: value.float() for name, value in read_file(DIT_FILE).items()}
        model = dit_config().get_model({}, device=device)
        self.network = model.diffusion_model
        weights = comfy.utils.state_dict_prefix_replace(weights, {UNET_PREFIX: ""}, filter_keys=True)
        self.network.load_state_dict(weights)
        self.network.requires_grad_(False).train()
        self.shift = model.model_sampling.shift
        self.table = read_file(BASE_FILE)[WORDS_KEY].float().to(device)
        encoder = load_clip_vision(CLIP_VISION_CONFIG, read_file(CLIP_VISION_FILE), CLIP_VISION_FILE.name)
        self.tower = encoder.model.float().to(device).requires_grad_(False)
        self.normalisation = (encoder.image_mean, encoder.image_std)
        factory = {"operations": comfy.ops.disable_weight_init, "device": device}
        width = self.tower.vision_model.post_layernorm.normalized_shape[0]
        self.projection = TimeResampler(
            width, TOKENS, WIDTH, WIDTH, WIDTH, depth=DEPTH, sines=TIME_SINES, **factory
        )  # fmt: skip
        self.layers = SD3Layers(DIT["num_blocks"], WIDTH, WIDTH, WIDTH, WIDTH // HEADS, **factory)
        self.norms = [
            (block.x_block.attn.ln_q.weight.detach(), block.x_block.attn.ln_k.weight.detach())
            for block in self.network.joint_blocks
        ]
        self._initialise()

    def _initialise(self) -> None:
        """Draws the weights. The time changes nothing at the start."""
        for name, part in [*self.projection.named_modules(), *self.layers.named_modules()]:
            if isinstance(part, nn.Linear):
                is_silent = ".2.1" in name or name.endswith("norm_ip.linear")
                nn.init.normal_(part.weight, std=0 if is_silent else part.in_features**-0.5)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.projection.latents, std=WIDTH**-0.5)
        with torch.no_grad():
            for n, (queries, keys) in enumerate(self.norms):
                layer = self.layers.get_submodule(str(n))
                layer.norm_q.weight.copy_(queries)
                layer.norm_k.weight.copy_(QUIET * keys)
                layer.norm_ip_k.weight.fill_(LOUD)
                layer.to_v_ip.weight.mul_(0.1)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            **{f"image_proj.{name}": value for name, value in self.projection.named_parameters()},
            **{f"ip_adapter.{name}": value for name, value in self.layers.named_parameters()},
        }

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn, image = draw_with_references(batch, generator)
        with torch.no_grad():
            pixels = normalised(image.to(self.device), *self.normalisation)
            hidden = hidden_states(self.tower, pixels, len(self.tower.vision_model.encoder.layers) - 1)
        dropped = torch.rand(batch, 1, 1, generator=generator) < NO_IMAGE
        asked = ask_flow(drawn.latent.to(self.device), self.shift, generator)
        timed = self.projection(hidden.masked_fill(dropped.to(hidden.device), 0), asked.timestep)
        pairs = (self.layers.keys_and_values(n, timed) for n in range(len(self.norms)))
        context = self.table[tokens(drawn.prompt).to(self.device)]
        pooled = pooled_text()["pooled_output"].to(self.device).expand(batch, -1)
        options = {"optimized_attention_override": self._attention(pairs, context.shape[1])}
        answer = self.network(asked.x, asked.timestep, context, pooled, transformer_options=options)
        return (answer - asked.target).pow(2).mean()

    def _attention(self, pairs: Iterator[tuple[Tensor, Tensor]], text: int) -> Callable[..., Tensor]:
        """The attention of the network with the image's term, for calls in the order of the blocks."""
        numbers = count()

        def attend(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, **settings: object) -> Tensor:
            n, (image_k, image_v) = next(numbers), next(pairs)
            out = fused_attention(func, q, k, v, heads)
            own_q, own_k = (
                normed_again(rearrange(part[:, text:], "b n (h d) -> b h n d", h=heads), was, weight)
                for part, was, weight in zip((q, k), self.norms[n], self.layers.norms(n), strict=True)
            )
            keys, values = torch.cat([own_k, image_k], 2), torch.cat([v[:, text:].transpose(1, 2), image_v], 2)
            term = functional.scaled_dot_product_attention(own_q, keys, values)
            return out + functional.pad(rearrange(term, "b h n d -> b n (h d)"), (0, 0, text, 0))

        return attend
