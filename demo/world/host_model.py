"""The demo model as objects of the host: config, latent format, patcher, VAE and image encoder. None is registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.clip_model import CLIPVisionModelProjection
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import Outline, check_tensors, shapes_of
from .dit import DIT
from .model import UNET, UNET_PREFIX, WORDS_KEY

Config = TypeVar("Config", bound=comfy.supported_models_base.BASE)


class DemoLatents(comfy.latent_formats.LatentFormat):
    """RGB in -1..1. The downscale ratio stays the host's 8, so that a latent for 256 pixels has 32 cells."""

    latent_channels = 3
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # noqa: RUF012, the host's form


class DemoConfig(comfy.supported_models_base.BASE):
    """What the host's detection would return if it knew this model."""

    latent_format = DemoLatents
    memory_usage_factor = 0.3
    # SD's schedule ends at sigma 14.6. At 32x32 so much of a picture shows through that noise that words are
    # ignored. A steeper table ends at 105, and unlike zero terminal SNR it keeps ratios of sigmas meaningful.
    sampling_settings = {"linear_start": 0.00085, "linear_end": 0.0225}  # noqa: RUF012, the host's form

    def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


class DemoDiTConfig(comfy.supported_models_base.BASE):
    """The same for the transformer: a rectified flow in the host's own class for SD3."""

    latent_format = DemoLatents
    memory_usage_factor = 0.3
    unet_extra_config = {}  # noqa: RUF012, the host's form; the host's default is for UNets
    # The words are decided while the noise is strong, for flat shapes show through it. So the steps lie there, as
    # SD3's own shift puts them: half of them above a noise level of 0.75.
    sampling_settings = {"shift": 3.0}  # noqa: RUF012, the host's form

    def get_model(
        self, state_dict: Mapping[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> comfy.model_base.SD3:
        return comfy.model_base.SD3(self, device=device)


def demo_config() -> DemoConfig:
    """The model's config for a UNet in single precision."""
    return in_single_precision(DemoConfig(dict(UNET)))


def dit_config() -> DemoDiTConfig:
    """The config of the transformer in single precision."""
    return in_single_precision(DemoDiTConfig(dict(DIT)))


def in_single_precision(config: Config) -> Config:
    """The config, set to build its network in single precision."""
    config.unet_config["dtype"] = torch.float32
    return config


def load_model(
    weights: Mapping[str, Tensor], name: str, make_config: Callable[[], Config] = demo_config
) -> ModelPatcher:
    """A host patcher with the network of checkpoint weights, in which other tensors are ignored.

    Raises ValueError if the weights do not fit the network.
    """
    unet = comfy.utils.state_dict_prefix_replace(dict(weights), {UNET_PREFIX: ""}, filter_keys=True)
    load_device = comfy.model_management.get_torch_device()
    config = make_config()
    dtypes = config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(
        model_params=sum(value.numel() for value in unet.values()), supported_dtypes=dtypes
    )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, dtypes))
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model(unet, device=offload_device)
    network = model.diffusion_model
    outline = make_config()
    outline.custom_operations = Outline
    check_tensors(shapes_of(outline.get_model({}, device=torch.device("meta")).diffusion_model), unet, name)
    network.load_state_dict(unet)
    network.eval().requires_grad_(False)
    return ModelPatcher(model.to(offload_device), load_device=load_device, offload_device=offload_device)


def pixel_space_vae() -> comfy.sd.VAE:
    """The host's VAE for models of pixels, which only moves values between 0..1 and -1..1."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.throw_exception_if_invalid()
    return vae


def load_clip_vision(config: Path, weights: Mapping[str, Tensor], name: str) -> comfy.clip_vision.ClipVisionModel:
    """The host's CLIP vision model of a JSON config. The word vectors it was trained against are ignored.

    Raises ValueError if the weights do not fit the config.
    """
    encoder = comfy.clip_vision.ClipVisionModel(str(config))
    tower = {key: value for key, value in weights.items() if key != WORDS_KEY}
    settings = json.loads(config.read_text(encoding="utf-8"))
    outline = CLIPVisionModelProjection(settings, torch.float32, torch.device("meta"), Outline)
    check_tensors(shapes_of(outline), tower, name)
    encoder.load_sd(tower)
    return encoder
