"""A ControlNet for windows of the picture: each chunk of a window sees its part of the hint.

The host would shrink the whole hint into each window. So a stand-in takes the ControlNet's place and cuts the hint. It
is the same object for all windows of a run, which keeps them in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import comfy.controlnet
import comfy.utils
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from .rows.conds import Area, info_of
from .rows.names import names_in
from .run import Run
from .shared_control import foreign_in


def windowed(control: ControlBase | None, whole: Area, run: Run, owner: str) -> dict[str, WindowedControl]:
    """Returns what to put into the conditioning of a window: a `control` with the hint cut, or nothing without one.

    The hint is for the area `whole` of the latent. `owner` is the method that asks, for the error.
    Raises RuntimeError if the ControlNet is of a kind that cannot be cut.
    """
    if control is None:
        return {}
    if (foreign := foreign_in(control)) is not None:
        raise RuntimeError(
            f"{owner} cannot cut the hint of a {type(foreign).__name__} of another pack into windows. "
            f"Remove one of the two."
        )
    stand_in = run.once((windowed, id(control), whole), lambda: WindowedControl(control, whole))
    return {"control": stand_in}


@dataclass(frozen=True, eq=False)
class WindowedControl:
    """Stands in the place of a ControlNet, or of a chain of them, for the windows of one run."""

    control: ControlBase
    whole: Area
    cut: dict[Any, ControlBase] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "control"), name)

    def get_control(
        self, x: Tensor, t: Tensor, cond: dict[str, Any], chunks: int, transformer_options: dict[str, Any]
    ) -> dict[str, list] | None:  # fmt: skip
        """Returns the residuals for x (chunks * b, c, h, w) and t (chunks * b,), as the host asks for them."""
        infos = [info_of(transformer_options, uuid) for uuid, _ in names_in(transformer_options)]
        areas = tuple(info.area for info in infos)
        key = (areas, len(x))
        if key not in self.cut:
            self.cut[key] = _cut(self.control, self.whole, areas, len(x) // chunks)
        return self.cut[key].get_control(x, t, cond, chunks, transformer_options)


def _cut(control: ControlBase, whole: Area, areas: Sequence[Area], per_chunk: int) -> ControlBase:
    """Returns a copy of a chain, with the same networks, whose hints have a row for each row of the windows."""
    with_parts = copy(control)
    ratio = control.compression_ratio
    if getattr(control, "vae", None) is not None:
        ratio *= control.vae.spacial_compression_encode()
    method = control.upscale_algorithm
    with_parts.cond_hint_original = _parts(control.cond_hint_original, whole, areas, per_chunk, ratio, method)
    with_parts.extra_concat_orig = [
        _parts(extra, whole, areas, per_chunk, ratio, method) for extra in control.extra_concat_orig
    ]
    with_parts.cond_hint = None
    if hasattr(control, "control_input"):  # what a T2I-Adapter computed from its whole hint
        with_parts.control_input = None
    if control.previous_controlnet is not None:
        with_parts.previous_controlnet = _cut(control.previous_controlnet, whole, areas, per_chunk)
    return with_parts


def _parts(hint: Tensor, whole: Area, areas: Sequence[Area], per_chunk: int, ratio: int, method: str) -> Tensor:
    """Returns the hint, fitted to the area it is for as the host does, cut into windows (chunks * b, c, h, w)."""
    fitted = comfy.utils.common_upscale(hint, whole.w * ratio, whole.h * ratio, method, "center")
    rows = fitted.expand(per_chunk, -1, -1, -1) if len(fitted) == 1 else fitted
    rows = torch.cat([rows] * (per_chunk // len(rows)) + [rows[: per_chunk % len(rows)]])
    parts = []
    for area in areas:
        top, left = (area.top - whole.top) * ratio, (area.left - whole.left) * ratio
        parts.append(rows[..., top : top + area.h * ratio, left : left + area.w * ratio])
    return torch.cat(parts)
