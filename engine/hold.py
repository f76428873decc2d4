"""Differences that are held over several steps, so that the model is asked for them less often.

The difference between two predictions of a step changes slowly over a run. A method that is given `refresh` asks for it
in every so many steps and uses the latest one between. It belongs to its run, to the size of its latent, to the
prompts that were active, and to the way in which the sampler called the model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .entries import Entry, entries
from .run import run_of
from .scope import Args
from .step import current_step


class Held(NamedTuple):
    """A difference (b, c, h, w), the number of the step that it was asked in, and what the latent was like there."""

    position: int
    like: tuple[Any, ...]
    difference: Tensor


def check_refresh(refresh: int) -> int:
    """Returns the number as it is. Raises ValueError if it is none by which steps can be counted."""
    if not isinstance(refresh, int) or refresh < 1:
        raise ValueError(
            f"refresh should be a whole number of steps, 1 or more, but is {refresh}. Set it to 1 to predict in every "
            f"step, or to 2 for every second one."
        )
    return refresh


def is_due(args: Args, name: Hashable, positive: Sequence[dict], refresh: int) -> bool:
    """Returns whether a difference is to be asked for in this step, and not taken from an earlier one.

    `name` tells whose difference it is. In a step that has asked, further calls of the sampler ask too. A sampler that
    goes back asks again, and so does a run whose noise levels are not known.
    """
    if refresh == 1:
        return True
    run = run_of(args["model_options"])
    if not run.sigmas:
        return True
    latest: Held | None = run.held.get(_key(args, name, positive))
    if latest is None or latest.like != _like(args):
        return True
    passed = run.position(current_step(args).sigma) - latest.position
    return passed <= 0 or passed >= refresh


def held(
    args: Args, name: Hashable, positive: Sequence[dict], refresh: int, make: Callable[[], Tensor]
) -> Tensor:  # fmt: skip
    """Returns what `make()` gives if it is due, and else what it gave in an earlier step, (b, c, h, w)."""
    if refresh == 1:
        return make()
    run = run_of(args["model_options"])
    if not run.sigmas:
        return make()
    key = _key(args, name, positive)
    if is_due(args, name, positive, refresh):
        run.held[key] = Held(run.position(current_step(args).sigma), _like(args), make())
    return run.held[key].difference


def _key(args: Args, name: Hashable, positive: Sequence[dict]) -> Hashable:
    """Returns the name with the prompts that are active at this noise level, and with all that acts in this call.

    A sampler may call the model in two ways in each step, one with edits. Each way has its own difference.
    """
    sigma = current_step(args).sigma
    acting = frozenset(entry.id for entry in entries(args["model_options"]["transformer_options"], Entry))
    active = (
        cond["uuid"] for cond in positive if cond.get("timestep_end", 0.0) <= sigma <= cond.get("timestep_start", sigma)
    )
    return name, acting, *active


def _like(args: Args) -> tuple[Any, ...]:
    x = args["input"]
    return x.shape, x.device, x.dtype
