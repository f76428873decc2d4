"""A ControlNet's residuals for the positive serve extra predictions too: they have its picture, noise level and text.

The host asks a ControlNet once for each batch, with rows for every chunk. If chunks of extra predictions repeat others,
a stand-in asks only for the rows that differ, and repeats the residuals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.controlnet
from comfy.controlnet import ControlBase
from torch import Tensor

from .rows.chunk import of_chunks, pick
from .rows.names import CondLists, names_in
from .run import Step


def sharing_controls(conds: CondLists, step: Step) -> CondLists:
    """Returns the lists of conds with stand-ins for their ControlNets, if any chunk repeats another one."""
    if not step.first_changes():
        return conds
    made: dict[int, SharedControl] = {}

    def with_stand_in(cond: dict) -> dict:
        control = cond.get("control")
        if control is None or foreign_in(control) is not None:
            return cond
        return {**cond, "control": made.setdefault(id(control), SharedControl(control, step))}

    return [of_list if of_list is None else [with_stand_in(cond) for cond in of_list] for of_list in conds]


def foreign_in(control: ControlBase | None) -> ControlBase | None:
    """Returns the first network of a chain that another pack's code asks. None if the host's own asks all of them.

    The host treats all rows alike. Other packs put their code into a class, or into one object of a class of the host.
    """
    while control is not None and all(_is_of_host(control, name) for name in ("get_control", "control_merge")):
        control = control.previous_controlnet
    return control


def _is_of_host(control: ControlBase, name: str) -> bool:
    method = getattr(control, name, None)
    is_own = getattr(method, "__self__", None) is control  # a copy may hold the method of what it is a copy of
    return is_own and method.__module__ == comfy.controlnet.__name__


@dataclass(frozen=True, eq=False)
class SharedControl:
    """Stands in the place of a ControlNet, or of a chain of them, for one call of the model by the sampler.

    On several GPUs the host asks it for the ControlNet of each, gets the real one, and nothing is shared.
    """

    control: ControlBase
    step: Step

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "control"), name)

    def get_control(
        self, x: Tensor, t: Tensor, cond: dict[str, Any], chunks: int, transformer_options: dict[str, Any]
    ) -> dict[str, list] | None:  # fmt: skip
        """Returns the residuals for x (chunks * b, c, h, w) and t (chunks * b,), as the host asks for them."""
        names = names_in(transformer_options)
        origins = [self.step.origin(uuid, label) for uuid, label in names]
        firsts = [i for i, origin in enumerate(origins) if origins.index(origin) == i]
        if len(firsts) == chunks or len({*names}) < chunks:  # names repeat if another pack asks for tiles
            return self.control.get_control(x, t, cond, chunks, transformer_options)
        some_x, some_t, options = (of_chunks(value, firsts, chunks, len(x)) for value in (x, t, transformer_options))
        some = {name: of_chunks(value, firsts, chunks, len(x)) for name, value in cond.items()}
        some["transformer_options"] = options
        residuals = self.control.get_control(some_x, some_t, some, len(firsts), options)
        self.step.controlled.update(uuid for uuid, _ in names)
        sources = [firsts.index(origins.index(origin)) for origin in origins]
        return None if residuals is None else _repeated(residuals, sources, len(firsts))


def _repeated(residuals: Mapping[str, list], sources: Sequence[int], chunks: int) -> dict[str, list]:
    """Returns residuals with rows for all chunks. A residual with one row for all chunks stays so."""

    def all_rows(residual: Tensor | None) -> Tensor | None:
        if residual is None or len(residual) == 1 or len(residual) % chunks:
            return residual
        return pick(residual, sources, chunks)

    return {name: [all_rows(residual) for residual in of_name] for name, of_name in residuals.items()}
