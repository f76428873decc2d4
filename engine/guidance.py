"""Extra predictions: further predictions of the model in a step, and how they enter the result.

An extra prediction shares x and sigma with the positive and the negative, so it joins the host's batch as one more list
of conds. A guider may skip the host's slot for batches (Perp-Neg, Dual CFG), or another pack may hold it. Then the
pack calls the model once more for the prediction, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any
from uuid import uuid5

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..models.guidance.fade import Fade
from .dit.block_layers import PerturbedBlocks
from .dit.families import takes_one_row
from .effects import watch
from .entries import Entry, append, entries, install_wrapper, next_order
from .hold import check_refresh, held, is_due
from .layers.attention import PerturbedLayers
from .layers.others import treat_chunks_apart
from .layers.tokens import PerturbedTokens
from .network import install_layers, options_of_call
from .rows.apart import each_apart
from .rows.names import AROUND
from .run import RUN, ExtraChunk, Step, run_of, start_run
from .scope import Args, add_post_cfg
from .shared_control import sharing_controls
from .sites import Depth, Site
from .span import Span, percent_at
from .step import PRE_CFG, current_step, in_span, note_plain, note_step, plain_predictions, to_sigma

CondsOf = tuple["ExtraPrediction | None", list[dict] | None]  # conds, and the extra prediction that they are for
SLOT = "sampler_calc_cond_batch_function"


@dataclass(frozen=True, eq=False, kw_only=True)
class ExtraPrediction(Entry):
    """A prediction beside the positive and the negative. Layers know its chunks by this entry's id."""

    is_negative: bool = False  # whether it stands for the negative

    @property
    def first_change(self) -> Depth | None:
        """The depth at which the prediction first differs from the plain one for the same conds.

        None if it may differ from the start.
        """
        return None

    def comes_first(self, args: Args) -> bool:
        """Whether it is made in a separate call of the model, before the other predictions."""
        return False

    def conds(self, args: Args, positive: list | None, negative: list | None) -> list | None:
        """Returns the conds that it is a prediction for. None if it is not wanted at this step."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class Term(ExtraPrediction):
    """An extra prediction by which `scale * (positive - this prediction)` is added to the result.

    `name` is for people. The difference is asked for in every `refresh` steps and held between.
    """

    name: str
    scale: float
    span: Span
    fade: Fade | None = None
    refresh: int = 1

    def conds(self, args: Args, positive: list | None, negative: list | None) -> list | None:
        return positive if self.is_wanted(args, positive) else None

    def is_wanted(self, args: Args, positive: list | None) -> bool:
        """Whether its prediction for the positive is to be made in this step."""
        return positive is not None and self.factor(args) != 0 and is_due(args, self.id, positive, self.refresh)

    def factor(self, args: Args) -> float:
        """Returns the scale at this step. It is 0 outside of the span."""
        if not in_span(self.span, args):
            return 0.0
        if self.fade is None:
            return self.scale
        percent = percent_at(current_step(args).sigma, run_of(args["model_options"]), to_sigma(args))
        return self.scale * self.fade(percent, *self.span)


@dataclass(frozen=True, eq=False, kw_only=True)
class TermAtSites(Term):
    """A term whose prediction differs from the positive at some sites of the network.

    If `share` is set, the layers before the first of them are computed once for this prediction and the positive.
    """

    sites: tuple[Site, ...]
    share: bool = True

    @property
    def first_change(self) -> Depth | None:
        return min(site.depth for site in self.sites) if self.share and self.sites else None


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionTerm(PerturbedLayers, TermAtSites):
    """A term whose prediction is made with `apply` on the attentions `sites`."""

    is_traceable: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenTerm(PerturbedTokens, TermAtSites):
    """A term whose prediction is made with `change` on the tokens between the attentions of `sites`, of a UNet."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockTerm(PerturbedBlocks, TermAtSites):
    """A term whose prediction is made with `change` on the blocks that `sites` lie in, of a transformer."""


def add_term(model: ModelPatcher, term: Term) -> ModelPatcher:
    """Returns a clone of `model` that is steered away from the term's prediction.

    Raises ValueError if `refresh` is no number of steps.
    """
    check_refresh(term.refresh)
    model = model.clone()
    term = replace(term, order=next_order(model))

    def difference(args: Args) -> Tensor:
        (perturbed,) = predictions(args, [term])
        return plain_predictions(args).positive - perturbed

    def add_to_result(args: Args) -> Tensor:
        factor = term.factor(args)
        if factor == 0 or args["cond"] is None:
            return args["denoised"]
        change = held(args, term.id, args["cond"], term.refresh, lambda: difference(args))
        return args["denoised"] + change * factor

    append(model, term)
    add_post_cfg(model, term.name, add_to_result, watch(model, term.name, term.span))
    install_layers(model)
    install_guidance(model)
    return model


def install_guidance(model: ModelPatcher) -> None:
    """Makes a clone of any kind of model compute the extra predictions of its list and obey its CFG ranges."""
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, start_run)
    others = [function for function in model.model_options.get(PRE_CFG, []) if function is not note_plain]
    model.model_options = {**with_slot(model.model_options), PRE_CFG: [note_plain, *others]}


def with_slot(model_options: Args) -> Args:
    """Returns the options with the pack's function in the host's slot for batches of conds, around the one there."""
    occupant = model_options.get(SLOT)
    return model_options if getattr(occupant, "is_reins", False) else {**model_options, SLOT: _batch_with(occupant)}


def _batch_with(occupant: Callable[[Args], list[Tensor]] | None) -> Callable[[Args], list[Tensor]]:
    """Returns a function for the host's slot. It predicts the host's conds and ours in one batch.

    An earlier function in the slot, the occupant, gets the host's conds alone.
    """

    def calc_cond_batch(args: Args) -> list[Tensor]:
        conds, options = list(args["conds"]), args["model_options"]
        uncond = conds[1] if len(conds) > 1 else None
        step = note_step(args, conds[0], uncond)
        # The flag is set by nodes that need the negative in any case.
        skipped = uncond is not None and not step.guided and not options.get("disable_cfg1_optimization")
        if skipped:
            conds[1] = step.uncond = None
        step.asked = tuple(conds)
        options = options_of_call(options, step)
        wanted = _wanted(args, conds) if conds[0] is not None and RUN in options["transformer_options"] else {}
        _predict(args, step, {extra: of_extra for extra, of_extra in wanted.items() if extra.comes_first(args)})
        if occupant is None:
            extras = (
                [extra for extra in wanted if not extra.comes_first(args)]
                if _may_join(args["model"], options, step)
                else []
            )
            marked = [_marked(wanted[extra], extra, step, args["model"]) for extra in extras]
            shared = sharing_controls(conds + marked, step)
            out = comfy.samplers.calc_cond_batch(args["model"], shared, step.x, step.timestep, options)
            step.predictions = {
                extra.id: prediction for extra, prediction in zip(extras, out[len(conds) :], strict=True)
            }
        else:
            out = occupant({**args, "conds": conds, "model_options": options})
        out = list(out[: len(conds)])
        if skipped:
            out[1] = out[0].clone()  # CFG of two equal predictions is the prediction, for every later hook too
        return out

    calc_cond_batch.is_reins = True
    return calc_cond_batch


def _may_join(model: Any, model_options: Args, step: Step) -> bool:
    """Whether extra chunks may be in the host's batch.

    They may not if another pack regroups rows around the call, or acts on one positive of a call.
    """
    options = model_options["transformer_options"]
    if RUN not in options or AROUND in model_options:
        return False
    return not treat_chunks_apart(options, step.cond or (), model.diffusion_model)


def _wanted(args: Args, conds: Sequence[list | None]) -> dict[ExtraPrediction, list]:
    positive, negative = conds[0], conds[1] if len(conds) > 1 else None
    conds_of = {
        extra: extra.conds(args, positive, negative)
        for extra in entries(args["model_options"]["transformer_options"], ExtraPrediction)
    }
    return {extra: of_extra for extra, of_extra in conds_of.items() if of_extra is not None}


def _marked(cond: list[dict], extra: ExtraPrediction, step: Step, model: Any) -> list[dict]:
    """Returns copies of the conds, on which alone layers of this extra prediction act. The step notes them.

    They share a call with others, but not if the network cannot take that.
    """
    marked = [{**entry, "uuid": uuid5(entry["uuid"], str(extra.id))} for entry in cond]
    if takes_one_row(model.diffusion_model, cond):
        marked = each_apart(marked)
    for entry, own in zip(cond, marked, strict=True):
        step.extras[own["uuid"]] = ExtraChunk(extra.id, extra.is_negative, entry["uuid"], extra.first_change)
    return marked


def predictions(args: Args, extras: Sequence[ExtraPrediction]) -> list[Tensor]:
    """Returns these extra predictions at this step, (b, c, h, w) each, for a post-CFG function. Each is given once."""
    step = current_step(args)
    if step.cond is args["cond"] and all(extra.id in step.predictions for extra in extras):
        return [step.predictions.pop(extra.id) for extra in extras]
    wanted = {extra: extra.conds(args, args["cond"], args["uncond"]) for extra in extras}
    return _predict(args, step, wanted)


def _predict(args: Args, step: Step, wanted: Mapping[ExtraPrediction, list]) -> list[Tensor]:
    """Returns the predictions for these conds, made in separate calls of the model."""
    if not wanted:
        return []
    alone = step.for_another_call()
    marked = {extra: _marked(conds, extra, alone, args["model"]) for extra, conds in wanted.items()}
    options = options_of_call(args["model_options"], alone)
    made: dict[ExtraPrediction | None, Tensor] = {}
    for call in _calls(marked, step, args):
        conds = sharing_controls([conds for _, conds in call], alone)
        out = comfy.samplers.calc_cond_batch(args["model"], conds, alone.x, alone.timestep, options)
        made.update(zip((extra for extra, _ in call), out, strict=True))
    return [made[extra] for extra in wanted]


def _calls(marked: Mapping[ExtraPrediction, list[dict]], step: Step, args: Args) -> list[list[CondsOf]]:
    """Returns the lists of conds of each call, with the extra predictions that they are for.

    It is one call with all extra predictions. If another pack acts on the first positive of a call alone, it is a call
    for each, with one positive and one negative as the sampler itself makes them. Windows have calls for themselves.
    """
    options = args["model_options"]["transformer_options"]
    if not treat_chunks_apart(options, step.cond or (), args["model"].diffusion_model):
        # Extra chunks are shown with label 0 or 1 (rows/order.py). Label 1 counts as negative only if there is a list 1
        # (rows/conds.py), so the place of list 0 stays empty.
        return [[(None, None), *marked.items()]]
    alone = [(extra, each_apart(conds) if len(conds) > 1 else conds) for extra, conds in marked.items()]
    positives = [item for item in alone if not item[0].is_negative]
    negatives = [item for item in alone if item[0].is_negative]
    plain = ((None, step.cond), (None, step.uncond))
    return [
        [own or of_plain for own, of_plain in zip(pair, plain, strict=True)]
        for pair in zip_longest(positives, negatives)
    ]
