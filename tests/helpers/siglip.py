"""SigLIP's image encoder, tiny: the host's own class, the tensors of the pooling head, and adapters that fit."""

from __future__ import annotations

import torch
from comfy.clip_vision import ClipVisionModel
from reins.models.ip_adapter.siglip import PREFIX
from reins.nodes.ip_adapter.load import make_ip_adapter, with_pooling
from reins.nodes.ip_adapter.prompt import IPAdapter
from torch import Tensor

from . import ip_adapter
from .transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file

WIDTH, PATCHES, SIZE = 32, 9, 42  # of hidden states, and of a picture
SETTINGS = {
    "model_type": "siglip_vision_model", "hidden_size": WIDTH, "num_attention_heads": 2, "image_size": SIZE,
    "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5), "hidden_act": "gelu_pytorch_tanh",
    "projection_dim": None,
}  # fmt: skip


def encoder(seed: int = 0, **changes: object) -> ClipVisionModel:
    """The host's encoder, drawn."""
    return ip_adapter.encoder(seed, **{**SETTINGS, **changes})


def naflex() -> ClipVisionModel:
    """The host's SigLIP 2 for pictures of any size, without weights."""
    changes = {"model_type": "siglip2_vision_model", "image_size": -1, "num_patches": 256, "patch_size": 16}
    return ip_adapter.blank_encoder(**{**SETTINGS, **changes})


def head(width: int = WIDTH, inner: int = 48, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of the pooling head as an encoder's file names them, drawn, and one tensor of its other parts."""
    shapes = {
        "probe": (1, 1, width), "attention.in_proj_weight": (3 * width, width), "attention.in_proj_bias": (3 * width,),
        "attention.out_proj.weight": (width, width), "attention.out_proj.bias": (width,),
        "layernorm.weight": (width,), "layernorm.bias": (width,), "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (width, inner), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    drawn = {f"{PREFIX}{key}": 0.5 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {**drawn, "vision_model.post_layernorm.weight": torch.ones(width)}


FILES = {
    "sd3": sd3_file(layers=3, width=WIDTH), "xlabs": xlabs_file(width=ip_adapter.EMBEDS),
    "instantx": instantx_flux_file(width=WIDTH),
}  # fmt: skip
FAMILIES = {"sd3": "sd3", "xlabs": "flux", "instantx": "flux"}


def adapter(name: str) -> IPAdapter:
    """A drawn adapter, with its pooling head if it needs one."""
    made = make_ip_adapter(FILES[name], f"{name}.safetensors")
    return with_pooling(made, head(), "encoder.safetensors") if name == "instantx" else made


def encoder_for(name: str, seed: int = 0) -> ClipVisionModel:
    """The drawn encoder that an adapter reads."""
    return ip_adapter.encoder(seed) if name == "xlabs" else encoder(seed)
