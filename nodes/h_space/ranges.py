"""Measures how far a model's predictions and its noisy pictures are from pictures, at each noise level (2210.10960)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.samplers import KSAMPLER
from comfy.sd import VAE
from torch import Tensor
from torch.nn import functional

from ...engine.loading import load_network, read_file
from ...engine.noise import seeded_noise
from ...models.h_space.ranges import inverted_step, share_of_picture
from ...models.lpips import SMALLEST, parse_lpips
from ..inputs.sockets import shape_text

AT_ONCE = 4  # pictures in one call of the model
DECODED = 8  # latents in one call of the VAE
TOKENS = 77  # of a text without words


class Metric(NamedTuple):
    """LPIPS as a network of the host, with the name of its file and of the network inside."""

    network: ModelPatcher
    name: str
    backbone: str


@dataclass(frozen=True, eq=False)
class Curves:
    """Mean distances from the pictures, from the finished picture to the noise."""

    percents: tuple[float, ...]
    sigmas: tuple[float, ...]
    predicted: tuple[float, ...]  # of what the model predicts at each level
    noisy: tuple[float, ...]  # of the noisy pictures
    pictures: int
    backbone: str


class Request(NamedTuple):
    """How to measure: the prompt of the pictures, at how many levels, and whether noise is drawn or inverted."""

    positive: list | None
    steps: int
    is_drawn: bool


@dataclass(eq=False)
class _Way:
    """What some pictures are on their way to the noise: at each level two latents (b, c, h, w), as a VAE takes them.

    The way is that of the noise (b, c, h, w) if there is some. Otherwise it is found by inversion.
    """

    noise: Tensor | None
    predicted: list[Tensor] = field(default_factory=list)
    noisy: list[Tensor] = field(default_factory=list)


def load_metric(path: Path) -> Metric:
    """Returns the LPIPS of a file. Raises ValueError if the file holds something else."""
    weights = {key: value for key, value in read_file(path).items() if isinstance(value, Tensor)}
    file = parse_lpips(weights, path.name)
    return Metric(load_network(file.make, file.weights, path.name), path.name, file.backbone.name)


def measure(model: ModelPatcher, vae: VAE, image: Tensor, metric: Metric, request: Request) -> Curves:
    """Returns the mean distances of pictures (b, h, w, 3), at levels that are even in percents.

    The model is called once for each level and every four pictures. Raises ValueError if the VAE is another model's.
    """
    levels = levels_of(model, request.steps)
    conds = empty_text(model) if request.positive is None else request.positive
    bar = comfy.utils.ProgressBar(3 * request.steps * len(image))
    found: list[Tensor] = []
    for some in image[..., :3].split(AT_ONCE):
        latents = vae.encode(some)
        check_latents(latents, model)
        # the noise of a picture does not depend on how many there are
        noise = [seeded_noise(latents[i : i + 1], len(found) + i) for i in range(len(latents))]
        way = _Way(torch.cat(noise) if request.is_drawn else None)
        _go(model, latents, conds, [sigma for _, sigma in levels], {"way": way, "bar": bar})
        for i in range(len(some)):
            found.append(_distances(vae, latents[i : i + 1], way, i, metric, bar))
    predicted, noisy = torch.stack(found).double().mean(0).tolist()
    percents, sigmas = zip(*levels, strict=True)
    return Curves(percents, sigmas, tuple(predicted), tuple(noisy), len(image), metric.backbone)


def levels_of(model: ModelPatcher, steps: int) -> list[tuple[float, float]]:
    """Returns percents and noise levels, from the finished picture to the noise. The host gives its ends no level."""
    sampling = model.get_model_object("model_sampling")
    inner = [1 - i / (steps - 1) for i in range(1, steps - 1)]
    found = [(percent, float(sampling.percent_to_sigma(percent))) for percent in inner]
    return [(1.0, float(sampling.sigma_min)), *found, (0.0, float(sampling.sigma_max))]


def check_latents(latents: Any, model: ModelPatcher) -> None:
    """Raises ValueError if the latents of a VAE are not those of the model."""
    channels = model.get_model_object("latent_format").latent_channels
    if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(
            f"vae should make latents of pictures with {channels} channels, as the model has them, but makes "
            f"{shape_text(latents)}. Connect the VAE of the model."
        )


def empty_text(model: ModelPatcher) -> list:
    """Returns a prompt of zeros, as of the host's node ConditioningZeroOut, of the widths that the model reads."""
    base = model.model
    width = base.model_config.unet_config.get("context_dim") or 1
    numbers = {comfy.model_base.SDXL: 6 * 256, comfy.model_base.SDXLRefiner: 5 * 256}  # of the picture's sizes
    beside = next((count for kind, count in numbers.items() if isinstance(base, kind)), None)
    pooled = {} if beside is None else {"pooled_output": torch.zeros(1, base.adm_channels - beside)}
    return [[torch.zeros(1, TOKENS, width), pooled]]


def _go(model: ModelPatcher, latents: Tensor, conds: list, sigmas: list[float], options: dict[str, Any]) -> None:
    """Takes latents (b, c, h, w) up the noise levels, by the host's sampling at cfg 1."""
    comfy.sample.sample_custom(
        model, torch.zeros_like(latents), 1.0, KSAMPLER(_sample, options), torch.tensor([*sigmas, 0.0]), conds, conds,
        latents, disable_pbar=True, seed=0,
    )  # fmt: skip


@torch.no_grad()
def _sample(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None, callback: Any = None,
    disable: bool | None = None, *, way: _Way, bar: comfy.utils.ProgressBar,
) -> Tensor:  # fmt: skip
    """Notes x (b, c, h, w) and what is predicted at each level, as the host calls its samplers. Returns x as it was.

    The host ends its lists of levels with a 0, which is no level.
    """
    network = model.inner_model.inner_model
    sampling, ones, levels = network.model_sampling, x.new_ones([len(x)]), sigmas.tolist()[:-1]
    is_flow, data = isinstance(sampling, CONST), float(getattr(sampling, "sigma_data", 1.0))
    start, keep = model.latent_image, comfy.model_management.intermediate_device()
    for i, sigma in enumerate(levels):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if way.noise is not None:
            x = sampling.noise_scaling(sigmas[i], way.noise.to(x), start)
        denoised = model(x, sigmas[i] * ones, **(extra_args or {}))
        shown = x * share_of_picture(sigma, data, is_flow)
        way.predicted.append(network.process_latent_out(denoised).to(keep))
        way.noisy.append(network.process_latent_out(shown).to(keep))
        bar.update(len(x))
        if i + 1 < len(levels):
            x = inverted_step(x, denoised, sigma, levels[i + 1])
    return start


@torch.no_grad()
def _distances(
    vae: VAE, latent: Tensor, way: _Way, picture: int, metric: Metric, bar: comfy.utils.ProgressBar
) -> Tensor:  # fmt: skip
    """Returns the distances (2, levels) of what a picture was on its way from what the VAE makes of it at once."""
    reference = _unit_features(metric, vae.decode(latent))
    found = []
    for latents in (way.predicted, way.noisy):
        row = []
        for some in torch.stack([level[picture] for level in latents]).split(DECODED):
            comfy.model_management.throw_exception_if_processing_interrupted()
            for shown in vae.decode(some).split(1):  # VGG16 takes 0.8 GB for one picture of 1024 pixels
                row.append(metric.network.model.between(reference, _unit_features(metric, shown)).cpu())
            bar.update(len(some))
        found.append(torch.cat(row))
    return torch.stack(found)


def _unit_features(metric: Metric, pictures: Tensor) -> list[Tensor]:
    """Returns the features (b, c, h, w) of each stage for pictures (b, h, w, 3) in 0..1."""
    comfy.model_management.load_models_gpu([metric.network])
    pixels = pictures[..., :3].movedim(-1, 1).to(metric.network.load_device).float() * 2 - 1
    return metric.network.model.unit_features(enlarged(pixels))


def enlarged(pixels: Tensor) -> Tensor:
    """Returns pictures (b, 3, h, w) by a whole number larger, if a side is below what LPIPS was fitted on."""
    factor = -(-SMALLEST // min(pixels.shape[-2:]))
    return functional.interpolate(pixels, scale_factor=factor, mode="nearest") if factor > 1 else pixels
