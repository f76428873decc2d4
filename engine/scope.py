"""What each method adds to a step's result, for a person to look at.

Every post-CFG function of the pack is put on a model here. If the model has a scope, each change of the result is noted
as numbers that stay on the device. Without a scope nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..models.guidance.fade import percent_of
from .entries import Entry, Signs, append, entries, install_wrapper, next_order
from .run import Run, run_of, start_run
from .span import sigma_table

Args = dict[str, Any]  # what the host hands to its sampler functions
PostCFG = Callable[[Args], Tensor]
POST_CFG = "sampler_post_cfg_function"
CFG = "CFG"


class Reading(NamedTuple):
    """One change of the result: its size, and its cosine to positive - negative (nan without a negative)."""

    name: str
    norm: Tensor  # (), root of the mean square
    cosine: Tensor  # (), mean over the images


@dataclass(frozen=True)
class Moment:
    """The changes of the result in one call of the model by the sampler."""

    sigma: float
    readings: list[Reading] = field(default_factory=list)


@dataclass(eq=False)
class Record:
    """The moments of the latest run of a model with a scope. It outlives the run, so that a node can show them."""

    run: Run | None = None
    direction: Tensor | None = None  # positive - negative of the latest moment, within the run
    moments: list[Moment] = field(default_factory=list)
    sigma_table: tuple[float, ...] = ()  # of the model at evenly spaced percents

    def percents(self) -> list[float]:
        """Returns where each moment lies on the axis of start_percent and end_percent."""
        return [percent_of(moment.sigma, self.sigma_table) for moment in self.moments]

    def end(self) -> None:
        """Drops the tensor that belongs to the run."""
        self.direction = None


_records: WeakValueDictionary[str, Record] = WeakValueDictionary()  # the latest one, while a model still holds it


@dataclass(frozen=True, eq=False, kw_only=True)
class Scope(Entry):
    """An entry that makes all methods of a model note what they do."""

    record: Record = field(default_factory=Record)


def add_scope(model: ModelPatcher) -> ModelPatcher:
    """Returns a clone of `model` that notes what each method adds. The result is the same, bit for bit."""
    model = model.clone()
    scope = Scope(order=next_order(model))
    append(model, scope)
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, start_run)

    def note_cfg(args: Args) -> Tensor:
        _begin(scope.record, args)
        return args["denoised"]

    put_first(model, note_cfg)
    return model


def put_first(model: ModelPatcher, function: PostCFG) -> None:
    """Puts a function before all others that a clone's result (b, c, h, w) goes through."""
    model.model_options[POST_CFG] = [function, *model.model_options.get(POST_CFG, [])]


def add_post_cfg(model: ModelPatcher, name: str, function: PostCFG, signs: Signs | None = None) -> None:
    """Appends a function to those that a clone's result (b, c, h, w) goes through. `name` is for people.

    The signs tell whether it was called, and whether it changed the result in a step in which it made one.
    """

    def noted(args: Args) -> Tensor:
        result = function(args)
        if signs is not None:
            signs.called = True
        if signs is not None and result is not args["denoised"]:
            signs.compare(result, args["denoised"])
        for scope in entries(args["model_options"]["transformer_options"], Scope):
            _note(scope.record, name, result, args["denoised"])
        return result

    model.set_model_sampler_post_cfg_function(noted)


def record_of(model: ModelPatcher) -> Record | None:
    """Returns what the scope of a model has noted. If there are several, the last one counts."""
    scopes = list(entries(model.model_options["transformer_options"], Scope))
    return scopes[-1].record if scopes else None


def latest_record() -> Record | None:
    """Returns the record of the scope that noted last, as long as its model is in use."""
    return _records.get("latest")


def _begin(record: Record, args: Args) -> None:
    run = run_of(args["model_options"])
    if record.run is not run:
        record.run, record.moments = run, []
        record.sigma_table = sigma_table(run, args["model"].model_sampling.percent_to_sigma)
        run.at_end(record.end)
    _records["latest"] = record
    positive, negative = args["cond_denoised"], args["uncond_denoised"]
    guided = args["uncond"] is not None and negative is not None
    record.direction = positive - negative if guided else None
    record.moments.append(Moment(run.sigma(args["sigma"])))
    _note(record, CFG, args["denoised"], positive)


def _note(record: Record, name: str, after: Tensor, before: Tensor) -> None:
    if not record.moments or after is before:
        return
    moment, change, direction = record.moments[-1], (after - before).float(), record.direction
    if direction is None:
        cosine = torch.full((), float("nan"))
    else:
        cosine = torch.cosine_similarity(change.flatten(1), direction.float().flatten(1)).mean()
    moment.readings.append(Reading(name, change.square().mean().sqrt(), cosine))
