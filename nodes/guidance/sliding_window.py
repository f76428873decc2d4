"""Sliding Window Guidance (2411.10257): steers away from what the model predicts if it sees the picture in parts.

Each window is a conditioning for an area. So the host itself cuts the noisy latent, masks and what is concatenated,
batches windows of equal size, splits batches by memory, and takes the mean in places where windows overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid5

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.guidance import Term, add_term
from ...engine.latents import check_before_sampling, check_format, check_shape
from ...engine.rows.conds import Area
from ...engine.run import run_of
from ...engine.scope import Args
from ...engine.span import Span
from ...engine.windowed_control import windowed
from ...models.guidance.windows import Window, windows
from ...models.numbers import CELL
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, refresh_input, scale_input, schema

NAME = "Sliding Window Guidance"
# Pixels per cell of latents. For hosts before 0.16, which do not tell it.
PIXELS = {
    "ChromaRadiance": 1, "Flux2": 16, "HunyuanImage21": 32, "HunyuanVideo15": 16, "LTXAV": 32, "LTXV": 32, "SC_B": 4,
    "SC_Prior": 42, "Wan22": 16,
}  # fmt: skip
# Their effect is in the weights of a window.
PLACED = ("area", "mask", "mask_strength", "strength", "set_area_to_bounds", "default")


class SlidingWindowGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SlidingWindowGuidance",
            display_name="SWG – Sliding Window Guidance",
            category="reins/guidance",
            description="Holds large pictures together: steers away from predictions that see only a window of the "
            "picture at a time (SWG). The windows take one more evaluation per step together, and more if they "
            "overlap.",
            search_aliases=["SWG", "sliding window guidance", "global coherence", "high resolution"],
            inputs=[
                model_input(), scale_input(2.0),
                make_input(
                    io.Int, "tile", default=512, min=16, max=16384, step=8,
                    tooltip="Side of a window in pixels. A picture that is no larger gets no guidance.",
                ),
                make_input(
                    io.Int, "overlap", default=128, min=0, max=16384, step=8,
                    tooltip="By how many pixels neighbouring windows overlap; the last one ends with the picture.",
                ),
                *percent_inputs(), refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, tile: int, overlap: int, start_percent: float, end_percent: float,
        refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        pixels = pixels_per_cell(model)
        if overlap >= tile:
            raise ValueError(
                f"tile should be longer than overlap, but tile is {tile} and overlap is {overlap} pixels. Windows "
                f"would not move on: lower overlap, to a quarter of tile for example."
            )
        if tile < pixels:
            raise ValueError(
                f"tile should be at least {pixels} pixels, a cell of this model's latents, but is {tile}. Raise tile, "
                f"to half of the picture for example."
            )
        if not scale:
            return io.NodeOutput(model)
        check_format(model, NAME)
        cells, shared = tile // pixels, overlap // pixels
        term = WindowTerm(
            name="SWG", scale=scale, span=Span(start_percent, end_percent), refresh=refresh, tile=cells,
            overlap=min(shared, cells - 1),
        )  # fmt: skip
        model = add_term(model, term)
        check_before_sampling(model, NAME)
        return io.NodeOutput(model)


def pixels_per_cell(model: ModelPatcher) -> int:
    """Returns how many pixels of a picture a cell of the model's latents stands for, in height and in width."""
    latent_format = model.model.latent_format
    told = getattr(latent_format, "spacial_downscale_ratio", None)
    return told or PIXELS.get(type(latent_format).__name__, CELL)


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowTerm(Term):
    """A term whose prediction is the mean of those for windows of `tile` cells that overlap by `overlap`.

    A prompt for an area has windows of that area alone, because it never sees more.
    """

    tile: int
    overlap: int

    def factor(self, args: Args) -> float:
        """Returns 0 if one window holds the whole latent, because both predictions are the same then."""
        return super().factor(args) if len(self._windows(args["input"])) > 1 else 0.0

    def conds(self, args: Args, positive: list | None, negative: list | None) -> list | None:
        if not self.is_wanted(args, positive):
            return None
        of_windows, run = [], run_of(args["model_options"])
        for cond, own, weights in _placed(positive, args["input"], args["sigma"]):
            kept = {key: value for key, value in cond.items() if key not in PLACED}
            control = windowed(cond.get("control"), own, run, NAME)
            for h, w, top, left in windows((own.h, own.w), self.tile, self.overlap):
                area = (h, w, own.top + top, own.left + left)
                name = uuid5(cond["uuid"], f"{self.id}{area}")
                of_windows.append({**kept, **control, "uuid": name, "area": area, "mask": weights})
        return of_windows

    def _windows(self, x: Tensor) -> list[Window]:
        check_shape(x.shape, NAME)
        return windows((x.shape[-2], x.shape[-1]), self.tile, self.overlap)


def _placed(conds: list[dict], x: Tensor, sigma: Tensor) -> Iterator[tuple[dict, Area, Tensor]]:
    """Yields each active cond, its area, and its weights in the cells of x (b, c, h, w): (1 or b, h, w).

    If x has the time axis of a video of one frame, (b, c, 1, h, w), so do the weights, (1 or b, 1, h, w).
    """
    size = (x.shape[-2], x.shape[-1])
    rest = x.new_ones((1, *x.shape[2:]))
    # Conds marked as default come last and share what the others leave.
    for cond in sorted(conds, key=lambda cond: "default" in cond):
        placed = comfy.samplers.get_area_and_mult(cond, x, sigma)
        if placed is None:
            continue
        own = Area(*size, 0, 0) if placed.area is None else _of_picture(placed.area)
        if "default" in cond:
            weights = torch.relu(rest)
        else:
            mult = placed.mult[:, 0] if len(cond.get("mask", ())) > 1 else placed.mult[:1, 0]
            weights = mult.new_zeros((len(mult), *x.shape[2:]))
            weights[..., own.top : own.top + own.h, own.left : own.left + own.w] = mult
            rest = rest - weights
        yield cond, own, weights


def _of_picture(area: Sequence[int]) -> Area:
    """Returns an area of the host, lengths and then starts along each axis, as height, width, top and left."""
    lengths, starts = area[: len(area) // 2], area[len(area) // 2 :]
    return Area(*lengths[-2:], *starts[-2:])
