"""A sampling run with partners.

The size and the conditioning of partners are checked, and the host is asked for memory for their rows. If the second
half of what is sampled runs at another noise level than the first, it is scaled.

The sampler knows one noise level. For a half y at c times that level, it is given u = y / c. If y is
y0 + c sigma noise, u is y0 / c + sigma noise. That is a diffusion of the usual kind, so every sampler is right for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .entries import entries, install_wrapper
from .partners import Partner, ratio, size_fault

logger = logging.getLogger(__name__)
WRAPPER = "reins_partners"
FROM_NOISE = 0.9  # share of the highest noise level from which on a picture counts as noise alone
Callback = Callable[[int, Tensor, Tensor, int], object]


def install_partners(model: ModelPatcher) -> None:
    """Makes a clone sample with the partners of its list."""
    install_wrapper(model, WrappersMP.PREPARE_SAMPLING, prepare_for_partners, WRAPPER)
    install_wrapper(model, WrappersMP.CALC_COND_BATCH, with_room_for_partners, WRAPPER)
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, sample_halves, WRAPPER)


def prepare_for_partners(
    executor: Any, model: ModelPatcher, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:  # fmt: skip
    """PREPARE_SAMPLING wrapper: asks the host for memory for the further rows.

    Raises ValueError if a partner has another size than the latent, a prompt is for an area, or GLIGEN is used.
    """
    partners = _partners(model)
    methods = " and ".join(dict.fromkeys(partner.method for partner in partners))
    with_latent = [partner for partner in partners if partner.latent is not None]
    for partner in with_latent:
        if tuple(partner.latent.shape[1:]) != tuple(noise_shape[1:]):
            raise ValueError(size_fault(partner.method, partner.name, partner.latent.shape, noise_shape))
    if any(_is_for_area(cond) for cond in _flat(conds)):
        raise ValueError(
            f"{methods} shows image and condition to each other as a whole, but a prompt is for an area of the "
            f"picture. Remove the area (a mask without 'mask bounds' works), or {methods}."
        )
    if any("gligen" in cond for cond in _flat(conds)):
        raise ValueError(
            f"GLIGEN places what it draws in the rows of the sampler alone, and {methods} adds rows to them. Remove "
            f"one of the two."
        )
    shape = [noise_shape[0] * (1 + len(with_latent)), *noise_shape[1:]]
    return executor(model, shape, conds, *args, **kwargs)


def with_room_for_partners(
    executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:  # fmt: skip
    """CALC_COND_BATCH wrapper: makes the host's batches of x (b, c, h, w) leave memory for the further rows."""
    partners = entries(model_options.get("transformer_options", {}), Partner)
    latents = sum(partner.latent is not None for partner in partners)
    return executor(ModelWithMoreMemory(model, 1 + latents) if latents else model, conds, x, timestep, model_options)


def sample_halves(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any = None,
    callback: Callback | None = None, disable_pbar: bool = False, seed: Any = None, **more: Any,
) -> Tensor:  # fmt: skip
    """OUTER_SAMPLE wrapper: scales the second half before the run, and back in the result (2 * b, c, h, w).

    Raises ValueError if there are not as many conditions as images, or if the model cannot run them at two levels.
    """
    model: ModelPatcher = executor.class_obj.model_patcher
    half = next((partner for partner in _partners(model) if partner.role == "half"), None)
    arguments = (sampler, sigmas, denoise_mask)
    if half is None:
        return executor(noise, latent_image, *arguments, callback, disable_pbar, seed, **more)
    if len(noise) % 2:
        raise ValueError(
            f"{half.method} samples images and as many conditions, but the latent has {len(noise)} rows. Make it with "
            f"{half.maker}."
        )
    check_ratio(model, half.condition_noise)
    scale = ratio(model.get_model_object("model_sampling"), half.condition_noise)
    _check_condition(half, model, latent_image, scale, arguments)
    scaled = _Scaled(model.model, scale)
    preview = None if callback is None else _Preview(callback, scale)
    latent_image = scaled.latent(latent_image, 1 / scale)
    out = executor(noise, latent_image, *arguments, preview, disable_pbar, seed, **more)
    if preview is not None:
        preview.finish()
    return scaled.latent(out, scale)


def _check_condition(half: Partner, model: ModelPatcher, latent: Tensor, scale: float, arguments: tuple) -> None:
    """Warns if the second half of a latent (2 * b, c, h, w) and the share of noise on it do not belong together."""
    sampler, sigmas, denoise_mask = arguments
    is_given = bool(latent.chunk(2)[1].any())
    if scale != 1 and not is_given:
        logger.warning("condition_noise is below 1, but the latent holds no condition: an empty one is followed")
    begins = float(sigmas[0]) >= FROM_NOISE * float(model.get_model_object("model_sampling").sigma_max)
    if scale == 1 and is_given and begins and denoise_mask is None and not getattr(sampler, "starts_halves", False):
        logger.warning(
            f"The latent holds a condition, but {half.method} has condition_noise 1, so nothing of it is left at the "
            f"start. Connect the latent of {half.maker} to {half.method} too, or set condition_noise there."
        )


class ModelWithMoreMemory:
    """A model of the host that asks for more memory. All else that is read or written is the model's."""

    def __init__(self, model: Any, times: int) -> None:
        self.__dict__.update(_model=model, _times=times)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def memory_required(self, input_shape: Any, *args: Any, **kwargs: Any) -> float:
        """Returns the memory for `times` as many rows as the host counts."""
        return self._model.memory_required([input_shape[0] * self._times, *input_shape[1:]], *args, **kwargs)


@dataclass(frozen=True)
class _Scaled:
    """Scales the second half of latents, in the space in which the model samples."""

    model: Any
    scale: float

    def latent(self, latent: Tensor, factor: float) -> Tensor:
        """Returns the latent (2 * b, c, h, w) with the second half multiplied. An empty latent stays so."""
        if self.scale == 1 or not latent.any():
            return latent
        return self.model.process_latent_out(second_half(self.model.process_latent_in(latent), factor))


@dataclass
class _Preview:
    """Shows each image with its condition beside it. At the end it passes on the true result, which nodes read."""

    callback: Callback
    scale: float
    last: tuple[int, Tensor, Tensor, int] | None = None

    def __call__(self, step: int, denoised: Tensor, x: Tensor, total: int) -> object:
        denoised = second_half(denoised, self.scale)
        self.last = (step, denoised, x, total)
        return self.callback(step, torch.cat(denoised.chunk(2), -1), x, total)

    def finish(self) -> None:
        if self.last is not None:
            self.callback(*self.last)


def second_half(rows: Tensor, factor: float) -> Tensor:
    """Returns the rows (2 * b, ...) with the second half multiplied by a factor."""
    if factor == 1:
        return rows
    first, second = rows.chunk(2)
    return torch.cat([first, second * factor])


def is_flow(model: ModelPatcher) -> bool:
    """Whether a model mixes image and noise by shares (flow). A scaled half would then be no diffusion."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def check_ratio(model: ModelPatcher, condition_noise: float) -> None:
    """Raises ValueError if a second half cannot have another noise level than the first."""
    if condition_noise < 1 and is_flow(model):
        raise ValueError(
            "condition_noise below 1 needs a model with eps or v prediction, but this one is a flow model. Set it to 1."
        )


def _partners(model: ModelPatcher) -> Iterable[Partner]:
    return list(entries(model.model_options["transformer_options"], Partner))


def _flat(conds: Any) -> Iterator[Mapping[str, Any]]:
    lists = conds.values() if isinstance(conds, Mapping) else conds
    for of_one in lists:
        yield from of_one or ()


def _is_for_area(cond: Mapping[str, Any]) -> bool:
    """Whether a conditioning is for an area. One with a mask gets an area from the mask's bounds."""
    return cond.get("area") is not None or bool("mask" in cond and cond.get("set_area_to_bounds"))
