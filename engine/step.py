"""What is known of a step of the sampler: its noise level, its conds, and what the model predicted for them.

It is noted when the guider evaluates a batch, or later if the guider skips the host's slot for batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .entries import Entry, entries
from .run import RUN, Step, run_of
from .scope import Args
from .span import Span

PRE_CFG = "sampler_pre_cfg_function"


@dataclass(frozen=True, eq=False, kw_only=True)
class CFGSpan(Entry):
    """The range of the run in which CFG acts. Outside of it the negative is neither computed nor used."""

    span: Span


class Plain(NamedTuple):
    """The predictions for positive and negative, (b, c, h, w) each, before any pre-CFG function changes them."""

    positive: Tensor
    negative: Tensor | None


def in_span(span: Span, args: Args) -> bool:
    """Whether this step lies in a range of percents."""
    return span.contains(current_step(args).sigma, run_of(args["model_options"]), to_sigma(args))


def current_step(args: Args) -> Step:
    """Returns what is noted about this call of the model. It is noted now if a guider skipped the host's slot."""
    return _noted(args) or note_step(args, args["cond"], args["uncond"])


def note_plain(args: Args) -> list[Tensor]:
    """Pre-CFG function before all others: notes the predictions (b, c, h, w), and returns them as they are."""
    positive, *others = args["conds"]
    step = _noted(args) or note_step(args, positive, others[0] if others else None)
    plain = args["conds_out"]
    if len(args["model_options"].get(PRE_CFG, [])) > 1:  # which may change tensors in place
        plain = [None if prediction is None else prediction.clone() for prediction in plain]
    step.plain = tuple(plain)
    return args["conds_out"]


def plain_predictions(args: Args) -> Plain:
    """Returns what the model predicted in this step, for a post-CFG function.

    Pre-CFG functions of other packs change the positive and the negative, but not the extra predictions. So a
    prediction may only be subtracted from one of these. A guider that calls no pre-CFG functions has not changed its
    predictions.
    """
    plain = current_step(args).plain
    if plain is None:
        return Plain(args["cond_denoised"], args["uncond_denoised"])
    return Plain(plain[0], plain[1] if len(plain) > 1 else None)


def _noted(args: Args) -> Step | None:
    run = args["model_options"].get("transformer_options", {}).get(RUN)
    step = None if run is None else run.step
    is_this = step is not None and step.x is args["input"] and step.timestep is args["sigma"]
    return step if is_this else None


def note_step(args: Args, cond: list | None, uncond: list | None) -> Step:
    """Returns the step for a call of the model by the sampler, and keeps it as the latest of the run."""
    run = run_of(args["model_options"])
    step = Step(x=args["input"], timestep=args["sigma"], sigma=run.sigma(args["sigma"]), cond=cond, uncond=uncond)
    run.step = step
    spans = [entry.span for entry in entries(args["model_options"]["transformer_options"], CFGSpan)]
    step.guided = uncond is not None and all(span.contains(step.sigma, run, to_sigma(args)) for span in spans)
    return step


def to_sigma(args: Args) -> Callable[[float], float]:
    """Returns the model's function from a percent of the run to a noise level."""
    return args["model"].model_sampling.percent_to_sigma
