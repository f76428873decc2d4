"""Methods that change how CFG combines its two predictions, as corrections of the result.

A correction is the method's combination minus that of plain CFG. So corrections and terms of other methods add up in
any order, also on top of another pack's CFG function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose
from typing import Any

from comfy.model_patcher import ModelPatcher
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
    """A step with CFG: the noisy latent x and the two predictions, (b, c, h, w) each, and the guidance scale `cfg`."""

    x: Tensor
    positive: Tensor
    negative: Tensor
    cfg: float
    sigma: float
    run: Run
    sampling: Any  # the model's

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
            args["input"], args["cond_denoised"], args["uncond_denoised"], args["cond_scale"],
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
