"""Captures a direction in h-space: the model samples, and how h differs between two prompts is noted at each step.

Without prompts the direction is a principal component of h over the pictures (as in work on directions without
supervision, e.g. 2303.11073).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.entries import append
from ...engine.guidance import Args, install_guidance
from ...engine.layers.features import FeatureCall
from ...engine.network import add_feature_layer
from ...engine.noise import seeded_noise
from ...engine.run import Step
from ...engine.span import WHOLE_RUN
from ...engine.step import current_step
from ...engine.unet import family_of, unet_of
from ...models.h_space.files import sort_directions
from ...models.h_space.steps import principal_direction
from .direction import FAMILY, SITE, PromptDirection, StoredDirection, note_h, noted_h
from .edit import Edit, entries_of, predict_prompts

SEEDS = 2**64  # the host takes 0 to 2**64 - 1
PLAIN = uuid4()  # the name under which the layer notes h of the positive


@dataclass(frozen=True, eq=False)
class CaptureRequest:
    """What to capture: `samples` runs of `steps` from a latent, with seeds that count up."""

    positive: list
    latent: Mapping[str, Any]
    seed: int
    steps: int
    samples: int
    pool: bool
    scheduler: str = "normal"


@dataclass(eq=False)
class _Recorder:
    """What the runs of a capture note: for each run h (b, c, h, w) of its pictures at each step."""

    runs: list[list[Tensor]] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)

    def add(self, h: Tensor, sigma: float, pool: bool) -> None:
        kept = h.float().mean((2, 3), keepdim=True) if pool else h.float()
        self.runs[-1].append(kept.cpu())
        if len(self.runs) == 1:
            self.sigmas.append(sigma)

    def stacked(self) -> Tensor:
        """Returns h of all runs (samples * b, t, c, h, w)."""
        return torch.cat([torch.stack(steps, 1) for steps in self.runs])


def capture_difference(model: ModelPatcher, request: CaptureRequest, prompts: PromptDirection) -> StoredDirection:
    """Returns the mean difference of h from a source prompt to a target prompt, at the pictures of the positive."""
    edit = Edit(direction=prompts, strength=0.0, span=WHOLE_RUN, both=False)
    steered = add_feature_layer(model, SITE, edit)
    for rows in entries_of(edit)[1:]:
        append(steered, rows)
    recorder = _Recorder()

    def difference(args: Args, step: Step) -> Tensor:
        predict_prompts(args, step, [edit])
        source, target = (_whole_h(step, side) for side in (prompts.source_id, prompts.target_id))
        return target - source

    _run(steered, request, recorder, difference)
    return _direction(model, request, recorder, recorder.stacked().mean(0), prompts.name)


def capture_component(model: ModelPatcher, request: CaptureRequest, number: int) -> StoredDirection:
    """Returns one standard deviation along a principal component of h over the samples."""

    def note(call: FeatureCall) -> None:
        for h, chunk in zip(call.split(call.feature), call.chunks, strict=True):
            if call.step is not None and chunk.mark is None:
                note_h(call.step, PLAIN, None, h)

    recorder = _Recorder()
    _run(add_feature_layer(model, SITE, note), request, recorder, lambda args, step: _whole_h(step, PLAIN))
    component = principal_direction(recorder.stacked(), number)
    return _direction(model, request, recorder, component, f"component {number}")


def _whole_h(step: Step, side: UUID) -> Tensor:
    h = noted_h(step, side, None)
    if h is None:
        raise RuntimeError(
            "Capture H-Space Direction needs all pictures in one call of the model, but another node sends them in "
            "parts (context windows, tiled diffusion). Remove that node."
        )
    return h


def _run(
    model: ModelPatcher, request: CaptureRequest, recorder: _Recorder, what: Callable[[Args, Step], Tensor]
) -> None:
    bar = comfy.utils.ProgressBar(request.steps * request.samples)

    def record(args: Args) -> Tensor:
        step = current_step(args)
        recorder.add(what(args, step), step.sigma, request.pool)
        bar.update(1)
        return args["denoised"]

    install_guidance(model)
    model.set_model_sampler_post_cfg_function(record)
    latent = comfy.sample.fix_empty_latent_channels(model, request.latent["samples"])
    for number in range(request.samples):
        recorder.runs.append([])
        seed = (request.seed + number) % SEEDS
        comfy.sample.sample(
            model, seeded_noise(latent, seed), request.steps, 1.0, "euler", request.scheduler,
            request.positive, request.positive, latent, disable_pbar=True, seed=seed,
        )  # fmt: skip


def _direction(
    model: ModelPatcher, request: CaptureRequest, recorder: _Recorder, dh: Tensor, name: str
) -> StoredDirection:  # fmt: skip
    metadata = {
        FAMILY: family_of(unet_of(model), model),
        "latent": "x".join(str(size) for size in request.latent["samples"].shape[-2:]),
        "steps": str(request.steps), "samples": str(request.samples), "seed": str(request.seed), "cfg": "1",
        "sampler": f"euler, {request.scheduler}", "pooled": str(request.pool), "what": name,
    }  # fmt: skip
    return StoredDirection(name, sort_directions(dh, torch.tensor(recorder.sigmas), name), metadata)
