"""Networks in the sizes of releases, with random weights, for whatever device the host has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.supported_models
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import full_size, tiny_models, tiny_transformers
from torch import Tensor, nn

SPARE = 2.5  # so many times the weights must be free: for activations, for patched copies, for an adapter
TOKENS = 77


class Network(NamedTuple):
    """A network of the host. `supported` and `base` are the host's names of its classes."""

    name: str
    supported: str
    base: str
    config: Callable[[], Mapping[str, Any]]
    context: int  # the width of texts
    pooled: int
    size: tuple[int, int]  # of latents
    cfg: float = 5.0
    kind: ModelType | None = ModelType.EPS

    @property
    def is_unet(self) -> bool:
        return self.kind is not None


def _transformer(family: str, **changes: Any) -> Callable[[], Mapping[str, Any]]:
    return lambda: tiny_transformers.FAMILIES[family].config(changes)


SD35M = {
    "depth": 24, "num_blocks": 24, "x_block_self_attn_layers": list(range(13)), "adm_in_channels": 2048,
    "pos_embed_max_size": 384, "num_patches": 384**2, "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}  # fmt: skip
FLUX = {
    "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 6,
    "depth_single_blocks": 12, "axes_dim": [16, 56, 56],
}  # fmt: skip
NETWORKS = [
    Network("SD1.5", "SD15", "BaseModel", lambda: full_size.unet_config("sd15"), 768, 768, (64, 64)),
    Network("SDXL", "SDXL", "SDXL", lambda: full_size.unet_config("sdxl"), 2048, 1280, (128, 128)),
    Network("SD3.5 Medium", "SD3", "SD3", _transformer("sd35m", **SD35M), 4096, 2048, (128, 128), kind=None),
    Network(
        "Flux, a third of its blocks", "Flux", "Flux", _transformer("flux", **FLUX), 4096, 768, (128, 128), 3.0, None
    ),
]  # fmt: skip
_WIDTH, _POOLED = tiny_models.WIDTH, tiny_models.POOLED
SMALL = [
    Network("tiny SD1.5", "SD15", "BaseModel", tiny_models.unet_config, _WIDTH, _POOLED, (16, 16)),
    Network(
        "tiny SDXL", "SDXL", "SDXL", lambda: tiny_models.unet_config(**tiny_models.SDXL), _WIDTH, _POOLED, (16, 16)
    ),
    Network("tiny SD3.5 Medium", "SD3", "SD3", _transformer("sd35m"), _WIDTH, _POOLED, (16, 16), kind=None),
    Network("tiny Flux", "Flux", "Flux", _transformer("flux"), _WIDTH, _POOLED, (16, 16), 3.0, None),
]  # fmt: skip


def make(network: Network) -> ModelPatcher:
    """The model, its weights drawn, where the host keeps what is not in use.

    Raises MemoryError if it does not fit.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
    needed = SPARE * sum(p.numel() for p in _build(network, dtype, torch.device("meta")).parameters()) * dtype.itemsize
    free = comfy.model_management.get_free_memory(device)
    if needed > free:
        raise MemoryError(f"{network.name} needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
    offload = comfy.model_management.unet_offload_device()
    model = _build(network, dtype, offload)
    model.diffusion_model.eval().requires_grad_(False)
    _fill(model.diffusion_model, device)
    return ModelPatcher(model, load_device=device, offload_device=offload)


def _build(network: Network, dtype: torch.dtype, device: torch.device) -> comfy.model_base.BaseModel:
    """The host's model of a network, without values for its weights."""
    config = {**network.config(), "dtype": dtype}
    settings = getattr(comfy.supported_models, network.supported)(dict(config))
    settings.unet_config = config  # undo what the family changes in it
    cast = comfy.model_management.unet_manual_cast(dtype, comfy.model_management.get_torch_device())
    settings.set_inference_dtype(dtype, cast)
    kind = () if network.kind is None else (network.kind,)
    return getattr(comfy.model_base, network.base)(settings, *kind, device=device)


@torch.no_grad()
def _fill(module: nn.Module, device: torch.device) -> None:
    """Draws every weight on the device, a few at a time, and puts it where the module is."""
    generator = torch.Generator(device).manual_seed(0)
    late = [pair for pair in module.named_buffers() if pair[0] in tiny_transformers.BUFFERS]
    for name, value in [*module.named_parameters(), *late]:
        drawn = torch.randn(value.shape, generator=generator, device=device, dtype=value.dtype)
        if value.ndim > 1:
            drawn *= value[0].numel() ** -0.5
        else:
            drawn = 0.1 * drawn + name.endswith(tiny_transformers.FACTORS)
        value.copy_(drawn)


def text(network: Network, seed: int) -> list:
    """A conditioning as nodes hand it around."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn((1, network.pooled), generator=generator)
    return [[torch.randn((1, TOKENS, network.context), generator=generator), {"pooled_output": pooled}]]


def empty(network: Network, model: ModelPatcher) -> Tensor:
    """A latent (1, c, h, w) of zeros."""
    return torch.zeros((1, model.model.latent_format.latent_channels, *network.size))


def sample(network: Network, model: ModelPatcher, steps: int, callback: Callable[..., None] | None = None) -> Tensor:
    """A run of the host's KSampler from seeded noise."""
    latent = empty(network, model)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(7))
    return comfy.sample.sample(
        model, noise, steps, network.cfg, "euler", "normal", text(network, 1), text(network, 2), latent,
        callback=callback, seed=7, disable_pbar=True,
    )  # fmt: skip
