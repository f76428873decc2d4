"""Extra predictions: one more answer of the model per step, and how it enters the result.

A term shares x and sigma with the positive prediction, so it joins the host's own batch as one more list of conds.
Where the host's slot for that is skipped (Perp-Neg, Dual CFG) or belongs to another pack, each term calls the model
by itself; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid5

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..models.fade import Fade
from .attention import PerturbedLayers
from .entries import Entry, append, entries, install_wrapper, next_order
from .network import install_layers, options_of_call
from .run import RUN, Step, run_of, start_run
from .span import Span, percent_at

Args = dict[str, Any]  # what the host hands to its sampler functions
PostCFG = Callable[[Args], Tensor]
SLOT = "sampler_calc_cond_batch_function"


@dataclass(frozen=True, eq=False, kw_only=True)
class Term(PerturbedLayers):
    """`scale * (positive - perturbed)`, with the perturbed prediction made by `apply` on `sites`."""

    scale: float
    span: Span
    fade: Fade | None = None

    def factor(self, args: Args) -> float:
        """The scale at this step; 0 outside the range."""
        if not in_span(self.span, args):
            return 0.0
        if self.fade is None:
            return self.scale
        percent = percent_at(current_step(args).sigma, run_of(args["model_options"]), _to_sigma(args))
        return self.scale * self.fade(percent, *self.span)


@dataclass(frozen=True, eq=False, kw_only=True)
class CFGSpan(Entry):
    """Outside of `span` the negative is neither evaluated nor used."""

    span: Span


def add_term(model: ModelPatcher, term: Term) -> ModelPatcher:
    """A clone of `model` that is steered away from what it would predict with the term's layer on its attentions."""
    model = model.clone()
    term = replace(term, order=next_order(model))
    append(model, term)

    def add_to_result(args: Args) -> Tensor:
        factor = term.factor(args)
        if factor == 0 or args["cond"] is None:
            return args["denoised"]
        return args["denoised"] + (args["cond_denoised"] - _prediction(term, args)) * factor

    model.set_model_sampler_post_cfg_function(add_to_result)
    install_layers(model)
    install_guidance(model)
    return model


def install_guidance(model: ModelPatcher) -> None:
    """Make a clone, of any kind of model, evaluate the terms and obey the CFG ranges of its list."""
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, start_run)
    occupant = model.model_options.get(SLOT)
    if not getattr(occupant, "is_reins", False):
        model.set_model_sampler_calc_cond_batch_function(_batch_with_terms(occupant))


def in_span(span: Span, args: Args) -> bool:
    """Whether this step lies in a range of percents."""
    return span.contains(current_step(args).sigma, run_of(args["model_options"]), _to_sigma(args))


def current_step(args: Args) -> Step:
    """What our slot noted about this very call of the model; noted now where a guider skipped the slot."""
    step = run_of(args["model_options"]).step
    if step is None or step.x is not args["input"] or step.timestep is not args["sigma"]:
        step = _note_step(args, args["cond"], args["uncond"])
    return step


def _note_step(args: Args, cond: list | None, uncond: list | None) -> Step:
    run = run_of(args["model_options"])
    step = Step(x=args["input"], timestep=args["sigma"], sigma=run.sigma(args["sigma"]), cond=cond)
    run.step = step
    spans = [entry.span for entry in entries(args["model_options"]["transformer_options"], CFGSpan)]
    step.guided = uncond is not None and all(span.contains(step.sigma, run, _to_sigma(args)) for span in spans)
    return step


def _to_sigma(args: Args) -> Callable[[float], float]:
    return args["model"].model_sampling.percent_to_sigma


def _batch_with_terms(occupant: Callable[[Args], list[Tensor]] | None) -> Callable[[Args], list[Tensor]]:
    """The host's slot: its conds and the terms' in one batch; an earlier occupant is asked for the conds alone."""

    def calc_cond_batch(args: Args) -> list[Tensor]:
        conds, options = list(args["conds"]), args["model_options"]
        uncond = conds[1] if len(conds) > 1 else None
        step = _note_step(args, conds[0], uncond)
        # The flag is set by nodes that need the negative in any case.
        skipped = uncond is not None and not step.guided and not options.get("disable_cfg1_optimization")
        if skipped:
            conds[1] = None
        options = options_of_call(options, step)
        if occupant is None:
            terms = _active_terms(args) if conds[0] is not None and _may_join(options) else []
            marked = [_marked(conds[0], term, step) for term in terms]
            out = comfy.samplers.calc_cond_batch(args["model"], conds + marked, step.x, step.timestep, options)
            step.predictions = {term.id: extra for term, extra in zip(terms, out[len(conds) :], strict=True)}
        else:
            out = occupant({**args, "conds": conds, "model_options": options})
        out = list(out[: len(conds)])
        if skipped:
            out[1] = out[0].clone()  # CFG of two equal predictions is the prediction, for every later hook too
        return out

    calc_cond_batch.is_reins = True
    return calc_cond_batch


def _may_join(model_options: Args) -> bool:
    """Whether chunks can be told apart in one batch: not where another pack regroups rows around the model's call."""
    return RUN in model_options["transformer_options"] and "model_function_wrapper" not in model_options


def _active_terms(args: Args) -> list[Term]:
    transformer_options = args["model_options"]["transformer_options"]
    return [term for term in entries(transformer_options, Term) if term.factor(args) != 0]


def _marked(cond: list[dict], term: Term, step: Step) -> list[dict]:
    """The positive's conds as chunks of their own, which only the term's layers act on."""
    marked = [{**entry, "uuid": uuid5(entry["uuid"], str(term.id))} for entry in cond]
    step.marks.update({entry["uuid"]: term.id for entry in marked})
    return marked


def _prediction(term: Term, args: Args) -> Tensor:
    step = current_step(args)
    if step.cond is args["cond"] and term.id in step.predictions:
        return step.predictions.pop(term.id)
    alone = step.for_another_call()
    marked = _marked(args["cond"], term, alone)
    options = options_of_call(args["model_options"], alone)
    (denoised,) = comfy.samplers.calc_cond_batch(args["model"], [marked], alone.x, alone.timestep, options)
    return denoised
