"""Warnings of methods that did nothing in a whole run although they should have acted.

A sampler may call the model past its wrappers, and another pack may replace the network's forward. Then a layer is
never called, or the prediction that it should change is the plain one, bit for bit. Signs of both are kept on the
entries (entries.py), for options that nobody has prepared lead to no run. They are read once, when the run is over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .entries import Entry, Signs, append, entries, install_wrapper
from .run import Run
from .span import Span

logger = logging.getLogger(__name__)
WRAPPER = "reins_effects"


@dataclass(frozen=True, eq=False, kw_only=True)
class Watched(Entry):
    """A method that should act in the steps of `span`. `name` is for people. Its signs are those of what acts.

    If it `needs_cfg`, nothing is expected of it at cfg 1.
    """

    name: str
    span: Span
    needs_cfg: bool = False


def watch(model: ModelPatcher, name: str, span: Span, signs: Signs | None = None, needs_cfg: bool = False) -> Signs:
    """Makes a clone that the caller has just made warn of a method without effect. Returns the signs to be marked."""
    signs = signs or Signs()
    append(model, Watched(name=name, span=span, signs=signs, needs_cfg=needs_cfg))
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, watch_run, WRAPPER)
    return signs


def watch_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: warns once of each method that did nothing. A run that does not end well says nothing."""
    guider = executor.class_obj
    watched = list(entries(guider.model_options["transformer_options"], Watched))
    for method in watched:
        method.signs.clear()
    try:
        result = executor(*args, **kwargs)
        _tell(watched, guider, args[3].tolist()[:-1])
    finally:
        for method in watched:
            method.signs.clear()
    return result


def _tell(watched: Sequence[Watched], guider: Any, sigmas: Sequence[float]) -> None:
    to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
    has_no_cfg = isclose(getattr(guider, "cfg", 0.0), 1.0)
    run, told = Run(), set()
    for method in watched:
        fault = None if method.needs_cfg and has_no_cfg else _fault(method)
        if fault and method.name not in told and any(method.span.contains(sigma, run, to_sigma) for sigma in sigmas):
            told.add(method.name)
            logger.warning(f"{method.name} did nothing in this run: {fault}")


def _fault(method: Watched) -> str | None:
    """Returns what the signs of a method tell against it. The device is read if its result has to be asked for."""
    signs = method.signs
    if not signs.called:
        return (
            "the sampler or another pack calls the model past it. Choose another sampler, or remove that pack from the "
            "model."
        )
    # Two equal prompts make a correction of CFG 0, which is right.
    if not method.needs_cfg and signs.changed is not None and not signs.changed.item():
        return "what it adds to the result was exactly 0 in every step. Another pack may keep its layers from acting."
    return None
