"""The sampler of Asyrp (2210.10960): exact with any guidance on the model, and with quality boosting at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler, trange
from comfy.model_sampling import CONST
from comfy.samplers import KSAMPLER
from torch import Tensor

from ...engine.entries import KEY
from ...engine.guidance import Args, with_slot
from ...engine.network import WRAPPERS, with_wrappers
from ...engine.run import RUN, Run
from ...engine.span import WHOLE_RUN, Span
from ...models.h_space.steps import edited_step, levels_of_step
from .direction import BlockDirection, check_direction
from .edit import Edit, entries_of


@dataclass(frozen=True, eq=False)
class Asyrp:
    """h is edited until `edit_end` (0 to 1) of the run. From `boost_start` on `boost_eta` of the noise is renewed."""

    edit: Edit
    edit_end: float
    boost_start: float
    boost_eta: float


def asyrp_sampler(asyrp: Asyrp) -> KSAMPLER:
    """Returns a sampler of the host."""
    return KSAMPLER(sample_asyrp, {"asyrp": asyrp})


@torch.no_grad()
def sample_asyrp(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict], None] | None = None, disable: bool | None = None, *, asyrp: Asyrp,
) -> Tensor:  # fmt: skip
    """Returns what is sampled (b, c, h, w), as the host calls its samplers.

    While h is edited, the model is called twice in each step. Raises ValueError if the direction does not fit it.
    """
    extra_args = dict(extra_args or {})
    guider = model.inner_model
    sampling = guider.inner_model.model_sampling
    is_flow = isinstance(sampling, CONST)
    check_direction(asyrp.edit.direction, guider.model_patcher)
    load(asyrp.edit)
    run = Run()
    edited_args = {**extra_args, "model_options": with_edit(extra_args.get("model_options", {}), asyrp.edit, run)}
    renew = default_noise_sampler(x, seed=extra_args.get("seed"))
    ones, levels = x.new_ones([len(x)]), sigmas.tolist()

    def within(span: Span, sigma: float) -> bool:
        return span.contains(sigma, run, sampling.percent_to_sigma)

    try:
        for i in trange(len(sigmas) - 1, disable=disable):
            sigma = levels[i]
            eta = asyrp.boost_eta if within(Span(asyrp.boost_start), sigma) else 0.0
            step = levels_of_step(sigma, levels[i + 1], eta, is_flow)
            plain = edited = model(x, sigmas[i] * ones, **extra_args)
            if asyrp.edit.strength and within(Span(end_percent=asyrp.edit_end), sigma):
                edited = model(x, sigmas[i] * ones, **edited_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": edited})
            x = edited_step(x, plain, edited, sigma, step, is_flow)
            if step.up > 0:
                x = x + step.up * renew(sigmas[i], sigmas[i + 1])
    finally:
        run.clear()
    return x


def with_edit(model_options: Mapping[str, Any], edit: Edit, run: Run) -> Args:
    """Returns the model's options for a call in which h is edited in every prediction."""
    options = dict(model_options.get("transformer_options", {}))
    added = entries_of(replace(edit, asymmetric=False, span=WHOLE_RUN))
    options[KEY] = [*options.get(KEY, ()), *added]
    options.setdefault(RUN, run)
    return with_slot({**model_options, "transformer_options": with_wrappers(options, WRAPPERS)})


def load(edit: Edit) -> None:
    """Loads the network of a delta block beside the models in use, because the host loads none for a sampler."""
    if isinstance(edit.direction, BlockDirection):
        in_use = comfy.model_management.loaded_models(only_currently_used=True)
        comfy.model_management.load_models_gpu([*in_use, edit.direction.network])
