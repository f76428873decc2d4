"""The image encoder: the host's CLIP vision tower, small, trained against a vector for each word.

CLIP pulls the embedding of a picture towards that of its caption. A caption here is one word per slot, so the embedding
is pulled towards the vectors of its words and away from those of the other words of each slot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import comfy.clip_model
import comfy.clip_vision
import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import Tensor, nn
from torch.nn import functional

from ..world.model import CLIP_VISION_CONFIG, CLIP_VISION_FILE, FIRST, TOKEN_SLOTS, VOCABULARY, WORDS_KEY, split_places
from ..world.scenes import SLOTS, draw, draw_words, render
from .data import mixed_precision
from .trainer import Plan

SCALE = 10.0  # of the cosines, before the softmax over a slot's words
NOISE = 0.1  # largest deviation of the noise on the pictures


class ClipVisionTask:
    """Trains the image encoder and its word vectors."""

    name = "clip-vision"
    what = "The image encoder: ComfyUI's CLIP vision tower, small, which reads the words of a picture."
    file = CLIP_VISION_FILE
    plan = Plan(steps=2400, batch=64, average=0.995)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        config = json.loads(CLIP_VISION_CONFIG.read_text())
        self.tower = comfy.clip_model.CLIPVisionModelProjection(
            config, torch.float32, device, comfy.ops.disable_weight_init
        )
        initialise(self.tower)
        self.words = nn.Embedding(len(VOCABULARY), config["projection_dim"], device=device)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {**dict(self.tower.named_parameters()), WORDS_KEY: self.words.weight}

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        words = draw_words(batch, generator)
        words[:, -1] = torch.randint(len(SLOTS["texture"]), (batch,), generator=generator)
        image = render(draw(batch, generator, words)).image
        strength = NOISE * torch.rand(batch, 1, 1, 1, generator=generator)
        image = (image + strength * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        pixels = comfy.clip_vision.clip_preprocess(image.movedim(1, -1).to(self.device), size=image.shape[-1])
        with mixed_precision(self.device):
            embeds = image_embeds(self.tower, pixels)
        losses = [
            functional.cross_entropy(cosines, word.to(self.device))
            for cosines, word in zip(read_words(embeds, self.words.weight), split_places(words).unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()


def image_embeds(tower: nn.Module, pixels: Tensor) -> Tensor:
    """The embeddings (b, c) of pixels (b, 3, h, w).

    The tower's forward adds in place, which breaks gradients. So its layers are called here one by one.
    """
    vision = tower.vision_model
    x = hidden_states(tower, pixels, len(vision.encoder.layers))
    return tower.visual_projection(vision.post_layernorm(x[:, 0]))


def hidden_states(tower: nn.Module, pixels: Tensor, layers: int) -> Tensor:
    """The hidden states (b, n, c) of pixels (b, 3, h, w) behind so many layers, made in the same way."""
    vision = tower.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    attention = optimized_attention_for_device(x.device, mask=False, small_input=True)
    for layer in vision.encoder.layers[:layers]:
        x = x + layer.self_attn(layer.layer_norm1(x), None, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def read_words(embeds: Tensor, vectors: Tensor) -> list[Tensor]:
    """The scaled cosines (b, words) of image embeds (b, c) with word vectors (vocabulary, c), for each token slot."""
    cosines = functional.normalize(embeds.float(), dim=1) @ functional.normalize(vectors, dim=1).T
    return [
        SCALE * cosines[:, first : first + len(words)]
        for first, words in zip(FIRST.tolist(), TOKEN_SLOTS.values(), strict=True)
    ]


def words_read(embeds: Tensor, vectors: Tensor) -> Tensor:
    """The likeliest word of each slot, (b, token slots), from embeds (b, c) and vectors (vocabulary, c)."""
    return torch.stack([cosines.argmax(1) for cosines in read_words(embeds, vectors)], 1)


def initialise(tower: nn.Module) -> None:
    """Draws the weights to start training from."""
    for name, parameter in tower.named_parameters():
        if "norm" in name or "layrnorm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=parameter.flatten(1).shape[1] ** -0.5)
        else:
            nn.init.zeros_(parameter)
