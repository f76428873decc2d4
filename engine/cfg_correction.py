"""Methods that change how CFG combines its two predictions, as corrections of the result.

A correction is the method's own combination less the plain one, so that corrections and terms of other methods add up
in any order, also on top of another pack's CFG function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .guidance import current_step, in_span, install_guidance
from .run import Run, run_of
from .scope import Args, add_post_cfg
from .span import Span


@dataclass(frozen=True)
class GuidedStep:
    """The two predictions of a step with CFG, (b, c, h, w) each, the noisy latent x, and the guidance scale."""

    x: Tensor
    positive: Tensor
    negative: Tensor
    cfg: float
    sigma: float
    run: Run


def add_correction(model: ModelPatcher, name: str, span: Span, correct: Callable[[GuidedStep], Tensor]) -> ModelPatcher:
    """A clone of `model` to whose result `correct` is added where CFG is at work; at cfg 1 nothing is."""

    def corrected(args: Args) -> Tensor:
        if not _is_guided(args) or not in_span(span, args):
            return args["denoised"]
        step = GuidedStep(
            args["input"], args["cond_denoised"], args["uncond_denoised"], args["cond_scale"],
            current_step(args).sigma, run_of(args["model_options"]),
        )  # fmt: skip
        return args["denoised"] + correct(step)

    model = model.clone()
    add_post_cfg(model, name, corrected)
    install_guidance(model)
    return model


def _is_guided(args: Args) -> bool:
    """Whether there is a negative prediction. Where the time range of all its prompts is over the host has zeros."""
    step = current_step(args)
    if args["cond"] is None or args["uncond"] is None or not step.guided or isclose(args["cond_scale"], 1.0):
        return False
    return any(
        cond.get("timestep_end", 0.0) <= step.sigma <= cond.get("timestep_start", step.sigma) for cond in args["uncond"]
    )
