"""Methods that change how CFG combines its two predictions, as corrections of the result.

A correction is the method's combination minus that of plain CFG. So corrections and terms of other methods add up in
any order, also on top of another pack's CFG function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import COSMOS_RFLOW
from torch import Tensor

from .effects import watch
from .guidance import install_guidance
from .run import Run, run_of
from .scope import Args, add_post_cfg
from .span import Span
from .step import current_step, in_span

NEAR = 0.15  # percent of the run in which ddim_uniform, with eight steps or more, begins


@dataclass(frozen=True)
class GuidedStep:
    """A step with CFG: the noisy latent x and the two predictions, and the guidance scale `cfg`.

    x and the predictions are (b, c, h, w), or (b, c, t, h, w) for a video. `timestep` (b,) has sigma for each row.
    """

    x: Tensor
    timestep: Tensor
    positive: Tensor
    negative: Tensor
    cfg: float
    sigma: float
    run: Run
    sampling: Any  # the model's

    @property
    def without_velocity(self) -> Tensor:
        """The prediction of a network whose velocity is 0, (b, c, h, w) as x: x itself.

        A rectified flow that the host samples with unbounded noise (Cosmos Predict2) is the exception. There x is the
        flow's picture divided by 1 - t, and grows with the noise level while that picture rests.
        """
        if not isinstance(self.sampling, COSMOS_RFLOW):
            return self.x
        return self.sampling.calculate_denoised(self.timestep, torch.zeros_like(self.x), self.x)

    @property
    def is_from_noise(self) -> bool:
        """Whether the run starts from noise alone."""
        return self.run.is_from_noise(float(self.sampling.sigma_max), float(self.sampling.percent_to_sigma(NEAR)))


def add_correction(model: ModelPatcher, name: str, span: Span, correct: Callable[[GuidedStep], Tensor]) -> ModelPatcher:
    """Returns a clone of `model` that adds the correction (b, c, h, w) to the result of each step with CFG.

    A step at cfg 1, without a negative prediction, or outside of `span` is left as it is.
    """

    def corrected(args: Args) -> Tensor:
        if not _is_guided(args) or not in_span(span, args):
            return args["denoised"]
        step = GuidedStep(
            args["input"], args["sigma"], args["cond_denoised"], args["uncond_denoised"], args["cond_scale"],
            current_step(args).sigma, run_of(args["model_options"]), args["model"].model_sampling,
        )  # fmt: skip
        return args["denoised"] + correct(step)

    model = model.clone()
    add_post_cfg(model, name, corrected, watch(model, name, span, needs_cfg=True))
    install_guidance(model)
    return model


def _is_guided(args: Args) -> bool:
    """Whether there is a negative prediction. The host gives zeros if the time range of all its prompts is over."""
    step = current_step(args)
    if args["cond"] is None or args["uncond"] is None or not step.guided or isclose(args["cond_scale"], 1.0):
        return False
    return any(
        cond.get("timestep_end", 0.0) <= step.sigma <= cond.get("timestep_start", step.sigma) for cond in args["uncond"]
    )
