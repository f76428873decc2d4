"""Small IP-Adapters, encoders and tokens for the tiny models, seeded; every released kind of file, in small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.clip_vision
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import find_transformers, unet_of
from reins.models.ip_adapter.network import (
    FacePlusProjection,
    FaceProjection,
    FullProjection,
    ImageLayers,
    LinearProjection,
    Resampler,
)
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.load import in_file_order, make_ip_adapter
from reins.nodes.ip_adapter.prompt import ImageTokens, IPAdapter
from reins.tests.helpers.tiny_models import WIDTH
from torch import Tensor, nn

EMBEDS, HIDDEN, FACE, TOKENS = 24, 32, 512, 4
OPERATIONS = comfy.ops.disable_weight_init
VISION = {
    "model_type": "clip_vision_model", "hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 3,
    "intermediate_size": 64, "hidden_act": "gelu", "image_size": 28, "patch_size": 14, "projection_dim": EMBEDS,
    "num_channels": 3, "layer_norm_eps": 1e-5,
}  # fmt: skip


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter in order: matrices by their fan-in, gains about one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
    return module


def projections(context: int = WIDTH) -> Mapping[str, nn.Module]:
    """One of each class, by the kind that its file has."""
    return {
        "linear": LinearProjection(EMBEDS, TOKENS, context, OPERATIONS),
        "plus": Resampler(HIDDEN, 3, 24, 128, context, OPERATIONS),
        "full": FullProjection(HIDDEN, HIDDEN, context, OPERATIONS),
        "face": FaceProjection(FACE, 40, TOKENS, context, OPERATIONS),
        "face plus": FacePlusProjection(
            FACE, 40, TOKENS, context, OPERATIONS, clip_width=HIDDEN, perceiver_inner=64
        ),
        "face resampler": Resampler(FACE, 3, 24, 64, context, OPERATIONS),
    }  # fmt: skip


def file_for(model: ModelPatcher, kind: str = "linear", seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a file that fits the model, under the official names."""
    sizes = [(one.width, one.context) for one in in_file_order(find_transformers(unet_of(model)))]
    projection = fill(projections()[kind], seed)
    layers = fill(ImageLayers(sizes, OPERATIONS), seed + 1)
    return {
        **{f"image_proj.{name}": value.detach() for name, value in projection.named_parameters()},
        **{f"ip_adapter.{name}": value.detach() for name, value in layers.named_parameters()},
    }


def lora_for(model: ModelPatcher, rank: int = 2, seed: int = 5) -> dict[str, Tensor]:
    """What a FaceID file holds beside that."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, one in enumerate(in_file_order(find_transformers(unet_of(model)))):
        for kind, context in (("attn1", one.width), ("attn2", one.context)):
            n = 2 * number + (kind == "attn2")
            for part, inputs in (("q", one.width), ("k", context), ("v", context), ("out", one.width)):
                stem = f"ip_adapter.{n}.to_{part}_lora"
                found[f"{stem}.down.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
                found[f"{stem}.up.weight"] = torch.randn(one.width, rank, generator=generator) / rank**0.5
    return found


@cache
def encoder(seed: int = 0, **changes: object) -> comfy.clip_vision.ClipVisionModel:
    """The host's CLIP vision model, tiny."""
    made = blank_encoder(**changes)
    made.load_sd({key: value.clone() for key, value in fill(made.model, seed).state_dict().items()})
    return made


def blank_encoder(**changes: object) -> comfy.clip_vision.ClipVisionModel:
    """Without weights; older hosts read their settings from a file only. A setting of None is left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        settings = {key: value for key, value in {**VISION, **changes}.items() if value is not None}
        path.write_text(json.dumps(settings), encoding="utf-8")
        made = comfy.clip_vision.ClipVisionModel(str(path))
    made.model.float()
    return made


def picture(seed: int = 0, b: int = 1, h: int = 28, w: int = 28) -> Tensor:
    """Seeded pictures (b, h, w, 3)."""
    return torch.rand((b, h, w, 3), generator=torch.Generator().manual_seed(seed))


def adapter(model: ModelPatcher, kind: str = "linear", seed: int = 0, name: str = "tiny.safetensors") -> IPAdapter:
    """A drawn adapter as the loader makes it."""
    return make_ip_adapter(file_for(model, kind, seed), name)


def tokens(adapter: IPAdapter, seed: int = 0, images: int = 1, count: int = TOKENS) -> ImageTokens:
    """Drawn tokens for pictures, (images, count, context), as the encode node gives them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(b: int) -> Tensor:
        return torch.randn((b, count, adapter.kind.context), generator=generator)

    return ImageTokens(draw(images), draw(1), draw(1), torch.ones(images), adapter.name, adapter.fingerprint)


def weighted(tokens: ImageTokens, *weights: float) -> ImageTokens:
    """The tokens with a weight for each picture."""
    return replace(tokens, weights=torch.tensor(weights))


def apply(model: ModelPatcher, seed: int = 0, images: int = 1, **settings: object) -> ModelPatcher:
    """The Apply node with a drawn adapter and drawn tokens."""
    made = adapter(model, seed=seed)
    return IPAdapterApply.execute(model, made, tokens(made, seed, images), **settings).result[0]
