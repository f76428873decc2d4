"""Which two settings are the rows and columns of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError, what_there_is

if TYPE_CHECKING:
    from .plan import Plan


class Choice(NamedTuple):
    """The places of two settings among the plan's labels. None stands for a grid of one row or one column."""

    rows: int | None
    columns: int | None


def choose(plan: Plan, rows: str | None = None, columns: str | None = None) -> Choice:
    """The settings that a person named, else the first of the options that vary. A single one gives the columns.

    Raises SweepError if a name is not one of the settings.
    """
    named = [_place(plan, name) for name in (rows, columns)]
    free = [place for place in _one_per_option(plan) if place not in named]
    if named[0] is None and named[1] is None and len(free) == 1:
        return Choice(None, free[0])
    row = named[0] if named[0] is not None else next(iter(free), None)
    free = [place for place in free if place != row]
    return Choice(row, named[1] if named[1] is not None else next(iter(free), None))


def _place(plan: Plan, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in plan.labels:
        raise SweepError(f"{name} is not among the settings of this sweep; {what_there_is(name, plan.labels)}")
    return plan.labels.index(name)


def _one_per_option(plan: Plan) -> list[int]:
    """The first setting that varies of each --set option: columns of a table vary together."""
    first: dict[int, int] = {}
    for place in plan.varied():
        first.setdefault(plan.axes[place], place)
    return list(first.values())
