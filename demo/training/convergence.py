"""How fast a ControlNeXt learns to follow, with Cross Normalization and with a convolution of zeros in its place.

    python3 dev.py train controlnext-convergence

Both start from the same weights and see the same pictures at the same constant rates. At some steps the weights,
without averaging, draw pictures through the host's sampler. The judge measures how well these follow the masks.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.layers.features import FeatureCall, FeatureSite
from ...engine.network import add_feature_layer
from ...engine.unet_weights import UNetWeights, add_unet_weights
from ..evaluate import AT_ONCE, SamplingSettings, sample
from ..judge import judge
from ..world.model import WEIGHTS
from .controlnext import BLOCK, ControlNeXtTask, Join, as_pixels, cross_normalised, zero_convolution
from .controlnext_numbers import HintedScenes, draw_hinted_scenes, iou
from .numbers import load_base
from .trainer import Plan, train

FILE = WEIGHTS / "controlnext" / "convergence.csv"
AT = (0, 50, 100, 150, 200, 300, 400, 600)
PICTURES = 48
SETTINGS = SamplingSettings(cfg=1.0, steps=12)
JOINS = {"Cross Normalization": cross_normalised, "convolution of zeros": zero_convolution}
RATES = (1e-3, 1e-4)  # of AdamW, for all parameters. The second is the authors' for their control network.

HEAD = ("join", "rate", "step", "IoU")
Point = tuple[str, float, int, float]


def compare(states: Path) -> int:
    """Trains and measures both, and writes the table and its plot. Returns the exit code."""
    device = comfy.model_management.get_torch_device()
    write_points(measure_convergence(ControlNeXtTask.plan, device, states))
    return 0


def measure_convergence(plan: Plan, device: torch.device, states: Path, at: Sequence[int] = AT) -> list[Point]:
    """The points (join, rate, step, IoU with the masks of the hints) for both joins and rates, at each step.

    Points that were measured before the command was stopped are read from `states`.
    """
    table = states / "controlnext-convergence.csv"
    points = read_points(table) if table.exists() else []
    given, done = draw_hinted_scenes(PICTURES), {point[:3] for point in points}
    for rate in RATES:
        for name, join in JOINS.items():
            for steps in (steps for steps in at if (name, rate, steps) not in done):
                task = ControlNeXtTask(device, join)
                folder = states / f"controlnext-{rate:g}-{join.__name__}"
                if steps:
                    changed = replace(plan, steps=steps, cool_down=0.0, average=0.0, rate=rate, matrix_rate=0.0)
                    train(task, changed, folder)
                points.append((name, rate, steps, follow(task, join, given)))
                write_table(points, table)
                print(*points[-1], sep="\t", flush=True)
    return points


def follow(task: ControlNeXtTask, join: Join, given: HintedScenes) -> float:
    """The mean IoU of drawn masks with those of the hints, without words for shape, place and size."""
    model, table = load_base()
    increments = {name: value.detach().cpu() for name, value in task.increments.items()}
    model = add_unet_weights(model, UNetWeights("in training", increments, "increment"), 1.0)
    drawn = [
        sample(joined(model, task, join, hints), table, words, SETTINGS)
        for hints, words in zip(given.hints[0].split(AT_ONCE), given.saying().split(AT_ONCE), strict=True)
    ]
    return iou(judge(torch.cat(drawn)).mask, given.mask).mean().item()


def joined(model: ModelPatcher, task: ControlNeXtTask, join: Join, hints: Tensor) -> ModelPatcher:
    """The model with a network in training, whose feature is joined by `join`."""
    network = task.network.cpu().requires_grad_(False)
    prepared = network.prepare(as_pixels(hints))

    def term(call: FeatureCall) -> Tensor:
        rows = len(call.feature) // len(hints)
        control = network(prepared, call.timesteps[:1]).repeat(rows, 1, 1, 1)
        return join(control, call.feature).to(call.feature)

    return add_feature_layer(model, FeatureSite(*BLOCK), term)


def write_points(points: Sequence[Point], path: Path = FILE) -> None:
    """Writes a table, and its plot beside it."""
    write_table(points, path)
    plot(points, path.with_suffix(".png"))


def write_table(points: Sequence[Point], path: Path) -> None:
    """Writes a table of points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([HEAD, *((*point[:3], f"{point[3]:.4f}") for point in points)])


def read_points(path: Path) -> list[Point]:
    """The points in a table."""
    with path.open(newline="", encoding="utf-8") as table:
        return [(join, float(rate), int(step), float(value)) for join, rate, step, value in list(csv.reader(table))[1:]]


def plot(points: Sequence[Point], path: Path) -> None:
    """Writes a plot of points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(RATES), figsize=(10, 4), layout="constrained", sharey=True)
    for axis, rate in zip(axes, RATES, strict=True):
        for name, colour in zip(JOINS, ("#2a5caa", "#c2571a"), strict=True):
            steps = [(step, value) for join, at, step, value in points if (join, at) == (name, rate)]
            axis.plot(*zip(*steps, strict=True), marker="o", color=colour, label=name)
        axis.set(title=f"AdamW, rate {rate:g}", xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("IoU of the picture with the hint's mask")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
