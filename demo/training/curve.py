"""The smoothed loss over a run, and its plot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

POINTS_EVERY = 10
SMOOTHING = 0.98


@dataclass
class Curve:
    """The running mean of the loss, with a point every few steps."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    latest: float = math.nan

    def add(self, step: int, loss: float) -> None:
        """Adds the loss of a step."""
        self.latest = loss if math.isnan(self.latest) else SMOOTHING * self.latest + (1 - SMOOTHING) * loss
        if step % POINTS_EVERY == 0:
            self.steps.append(step)
            self.losses.append(self.latest)


def draw_curve(curve: Curve, title: str, path: Path) -> None:
    """Writes the plot of a curve to `path`, unless it has less than two points."""
    if len(curve.steps) < 2:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(curve.steps, curve.losses, color="#2a5caa")
    axes.set(title=title, xlabel="step", ylabel="loss (running mean)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
