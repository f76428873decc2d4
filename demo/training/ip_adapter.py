"""An IP-Adapter (2308.06721) for the demo model on its image encoder's embeddings, in the official file's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import comfy.ops
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...engine.loading import read_file
from ...engine.unet import find_transformers
from ...models.ip_adapter.network import ImageLayers, LinearProjection
from ...nodes.ip_adapter.load import in_file_order
from ..world.host_model import load_clip_vision
from ..world.model import CLIP_VISION_CONFIG, CLIP_VISION_FILE, CONTEXT
from ..world.scenes import draw, draw_words, render
from .clip_vision import image_embeds
from .data import Batch, draw_batch
from .frozen import FrozenBase
from .ip_adapter_numbers import FILE
from .trainer import Plan

TOKENS = 4
UNSAID = 0.6  # of every word, so that much is left to the reference
CONTRADICTED = 0.5  # share of the references that contradict the words, so that the text decides what it says
NO_IMAGE = 0.08  # share of the references that are replaced by zeros


class IPAdapterTask:
    """Trains an IP-Adapter."""

    name = "ip-adapter"
    what = "An IP-Adapter of four tokens: a reference picture decides what the prompt leaves open."
    file = FILE
    plan = Plan(steps=2400, batch=32, matrix_rate=0.01, average=0.995)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        encoder = load_clip_vision(CLIP_VISION_CONFIG, read_file(CLIP_VISION_FILE), CLIP_VISION_FILE.name)
        self.tower = encoder.model.float().to(device).requires_grad_(False)
        self.normalisation = (encoder.image_mean, encoder.image_std)
        width = self.tower.visual_projection.out_features
        self.sites = in_file_order(find_transformers(self.base.unet))
        factory = {"operations": comfy.ops.disable_weight_init, "device": device}
        self.projection = LinearProjection(width, TOKENS, CONTEXT, **factory)
        self.layers = ImageLayers([(site.width, site.context) for site in self.sites], **factory)
        self._initialise()

    def _initialise(self) -> None:
        """Draws the weights. As in the paper, the layers start as copies of those of the text."""
        nn.init.normal_(self.projection.proj.weight, std=self.projection.proj.in_features**-0.5)
        nn.init.zeros_(self.projection.proj.bias)
        nn.init.ones_(self.projection.norm.weight)
        nn.init.zeros_(self.projection.norm.bias)
        with torch.no_grad():
            for n, site in enumerate(self.sites):
                text = self.base.unet.get_submodule(site.path).attn2
                pair = self.layers.get_submodule(str(2 * n + 1))
                pair.to_k_ip.weight.copy_(text.to_k.weight)
                pair.to_v_ip.weight.copy_(text.to_v.weight)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            **{f"image_proj.{name}": value for name, value in self.projection.named_parameters()},
            **{f"ip_adapter.{name}": value for name, value in self.layers.named_parameters()},
        }

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        drawn, image = draw_with_references(batch, generator)
        with torch.no_grad():
            embeds = image_embeds(self.tower, normalised(image.to(self.base.device), *self.normalisation))
        dropped = torch.rand(batch, 1, generator=generator) < NO_IMAGE
        tokens = self.projection(embeds.masked_fill(dropped.to(embeds.device), 0))
        replaced = {
            (site.block, site.number, site.index): self._attention(n, tokens) for n, site in enumerate(self.sites)
        }
        options = {"transformer_options": {"patches_replace": {"attn2": replaced}}}
        return self.base.loss(drawn, generator, {}, lambda _: options)

    def _attention(self, n: int, tokens: Tensor) -> Callable[..., Tensor]:
        def attend_both(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, object]) -> Tensor:
            heads = options["n_heads"]
            return attention(q, k, v, heads) + attention(q, *self.layers.keys_and_values(n, tokens), heads)

        return attend_both


def draw_with_references(count: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """A batch with little said, and a reference picture (b, 3, SIZE, SIZE) in 0..1 for each of its pictures."""
    drawn = draw_batch(count, generator, unsaid=UNSAID)
    others = draw_words(count, generator)
    contradicted = (drawn.prompt >= 0) & (torch.rand(count, 1, generator=generator) < CONTRADICTED)
    words = torch.where(contradicted, others, drawn.scenes.words)
    return drawn, render(draw(count, generator, words)).image


def normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1 as an image encoder takes them."""
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (image - mean) / std


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The attention (b, n, heads * d) of q (b, n, heads * d), k and v (b, m, heads * d)."""
    q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=heads) for part in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k.to(q), v.to(q))
    return rearrange(out, "b h n d -> b n (h d)")
