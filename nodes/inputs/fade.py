"""The `fade` input: how a scale falls over the range in which a node acts."""

from __future__ import annotations

from comfy_api.latest import io

from ...models.guidance.fade import Fade, adaptive, linear
from .schema import make_input


def fade_input(*options: str) -> io.Input:
    return make_input(
        io.Combo, "fade", options=list(options), default="none",
        tooltip="none: the same scale in the whole range. linear: down to 0 at end_percent."
        + (" adaptive (peer): the curve of sd-perturbed-attention, see adaptive_scale." if len(options) > 2 else ""),
    )  # fmt: skip


def adaptive_input() -> io.Input:
    return make_input(
        io.Float, "adaptive_scale", default=0.1, min=0.0, max=1.0, step=0.001, optional=True, advanced=True,
        tooltip="For fade 'adaptive (peer)' only: the scale loses adaptive_scale^4 of itself per training timestep "
        "(0.1: 10 % over the run; 0.178: all of it; 0.3 ends the guidance after an eighth of the run).",
    )  # fmt: skip


def make_fade(name: str, adaptive_scale: float = 0.0) -> Fade | None:
    """Returns the fade that an option names, or None for a constant scale."""
    return {"none": None, "linear": linear, "adaptive (peer)": adaptive(adaptive_scale)}[name]
