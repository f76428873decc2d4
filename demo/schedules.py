"""The tables of docs/schedules.md: where the steps of each scheduler lie on the axis of start_percent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from comfy.model_base import ModelType, model_sampling
from comfy.samplers import KSampler
from comfy.supported_models import SD3, SD15, Flux

from ..engine.span import sigmas_at_even_percents
from ..models.guidance.fade import percent_of

STEPS = (4, 8, 20)
FIFTHS = 5
MOST_STEPS = 30  # for which ddim_uniform is looked at
NUDGE = 2.5e-7  # 0.5625 itself is rounded up, whatever its last bit is on this machine
TABLE_STEPS = 999  # those of SD's table, whose noise levels are then met exactly


class Kind(NamedTuple):
    """A kind of model: its heading, and its noise levels as ComfyUI makes them of the model's configuration."""

    name: str
    short: str
    config: type
    model_type: ModelType

    def sampling(self) -> torch.nn.Module:
        return model_sampling(self.config, self.model_type)


KINDS = (
    Kind("SD1.x, SD2.x, SDXL", "SD", SD15, ModelType.EPS),
    Kind("SD3 (flow, shift 3)", "SD3", SD3, ModelType.FLOW),
    Kind("Flux (flow, shift 1.15)", "Flux", Flux, ModelType.FLUX),
)
Schedules = dict[str, list[float]]  # scheduler -> the percent of each step


def sigmas(sampling: torch.nn.Module, scheduler: str, steps: int, denoise: float = 1.0) -> list[float]:
    """Returns the noise levels of KSampler's steps, the last one included."""
    model = SimpleNamespace(get_model_object=lambda name: sampling)
    return KSampler(model, steps, torch.device("cpu"), "euler", scheduler, denoise).sigmas.tolist()


def to_percent(sampling: torch.nn.Module) -> Callable[[float], float]:
    """Returns a function from a noise level to its percent."""
    table = sigmas_at_even_percents(sampling.percent_to_sigma, TABLE_STEPS)
    return lambda sigma: percent_of(sigma, table)


def schedules(sampling: torch.nn.Module, steps: int, denoise: float = 1.0) -> Schedules:
    """Returns the percent at which each step begins, for every scheduler of this ComfyUI."""
    percent = to_percent(sampling)
    return {
        name: [percent(sigma) for sigma in sigmas(sampling, name, steps, denoise)[:-1]] for name in KSampler.SCHEDULERS
    }


def page() -> str:
    """Returns the text of docs/schedules.md."""
    samplings = {kind.name: kind.sampling() for kind in KINDS}
    (sd, *_) = samplings.values()
    parts = [_how_to(schedules(sd, 20)), _image_to_image(samplings)]
    for name, sampling in samplings.items():
        parts.append(f"## {name}")
        for steps in STEPS:
            parts.append(f"### {name}: {steps} steps\n\n{_steps_table(schedules(sampling, steps))}")
        parts.append(
            f"### {name}: how many of 20 steps lie in each fifth of the run\n\n{_fifths(schedules(sampling, 20))}"
        )
    return "\n\n".join([*parts, _ddim_uniform(sd)]) + "\n"


HOW_TO = """# Where the steps lie

`start_percent` and `end_percent` count noise levels: 0 is pure noise, 1 is the finished picture. They do not count steps, and each scheduler puts its steps at other percents. The tables below say at which percent each step lies.

1. Choose the chapter of your model and the table of your number of steps.
2. Go down the column of your scheduler. The numbers are the percents of the steps.
3. A node acts in a step if the step's number lies from `start_percent` to `end_percent`. Set each of the two between two numbers of the column: the numbers are rounded.

For example, a range of {low} to {high} holds these of 20 steps on SD:

{example}

[Guidance Plot](../web/docs/Reins_GuidancePlot.md) shows the same for your own run, on any model and with any sigmas.

- The columns of `simple`, `sgm_uniform`, `ddim_uniform`, `beta` and `normal` are almost the same on all models: these schedulers spread steps over the timesteps of the model, and so does the percent. The other columns depend on the model. On a flow model `karras`, `exponential` and `kl_optimal` put most steps near the end, the more so the larger its shift is.
- Samplers with two calls of the model per step (`heun`, `dpmpp_sde`) make the second call at a percent between two steps, or at that of the next step.
- KSampler leaves out the last noise level but one with `dpm_2`, `dpm_2_ancestral`, `uni_pc` and `uni_pc_bh2`, and takes the levels of a run with one step more.
- A model with another table of noise levels (zero terminal SNR, EDM, Stable Cascade) has other percents.

[demo/write_schedules.py](../demo/write_schedules.py) makes this page with ComfyUI's own schedulers."""  # noqa: E501


def _how_to(of_sd: Schedules, low: float = 0.22, high: float = 0.68) -> str:
    cells = [_held(percents, low, high) for percents in of_sd.values()]
    return HOW_TO.format(low=low, high=high, example=_table(["scheduler", *of_sd], [["steps", *cells]]))


def _held(percents: Sequence[float], low: float, high: float) -> str:
    steps = [i for i, percent in enumerate(percents, 1) if low <= percent <= high]
    return " to ".join(str(step) for step in sorted({steps[0], steps[-1]})) if steps else "none"


def _image_to_image(samplings: dict[str, torch.nn.Module]) -> str:
    rows = [
        [
            kind.short,
            str(steps),
            *(_number(percents[0]) for percents in schedules(samplings[kind.name], steps, 0.5).values()),
        ]
        for kind in KINDS
        for steps in STEPS
    ]
    return (
        "## Where image-to-image with denoise 0.5 begins\n\n"
        "ComfyUI computes the schedule of twice the steps and runs the second half of it. A range that ends before "
        "this percent holds no step, and the node does nothing.\n\n"
        + _table(["model", "steps", *KSampler.SCHEDULERS], rows)
        + "\n\n`linear_quadratic` begins there with almost pure noise, so hardly anything of the given picture is left."
    )


def _ddim_uniform(sampling: torch.nn.Module) -> str:
    percent = to_percent(sampling)
    made = {steps: sigmas(sampling, "ddim_uniform", steps) for steps in range(1, MOST_STEPS + 1)}
    *kept, last = (str(steps) for steps, levels in made.items() if len(levels) - 1 == steps)
    rows = [
        [str(steps), str(len(levels) - 1), _number(percent(levels[0])), f"{levels[0]:.3g}"]
        for steps, levels in made.items()
        if steps <= 8
    ]
    return (
        "## What ddim_uniform does with few steps\n\n"
        "`ddim_uniform` counts whole timesteps upwards from the second one. So it begins below the largest noise level "
        f"({float(sampling.sigma_max):.3g} on SD), far below it with few steps. Most numbers of steps give one step "
        f"more: up to {MOST_STEPS} steps, SD makes what you ask for at {', '.join(kept)} and {last} alone.\n\n"
        + _table(["steps asked for", "steps made", "begins at percent", "begins at sigma"], rows)
    )


def _steps_table(of_schedulers: Schedules) -> str:
    most = max(map(len, of_schedulers.values()))
    rows = [[str(i + 1), *(_cell(percents, i) for percents in of_schedulers.values())] for i in range(most)]
    return _table(["step", *of_schedulers], rows)


def _cell(percents: Sequence[float], i: int) -> str:
    return _number(percents[i]) if i < len(percents) else ""


def _fifths(of_schedulers: Schedules) -> str:
    rows = []
    for fifth in range(FIFTHS):
        low, high = fifth / FIFTHS, (fifth + 1) / FIFTHS
        counts = (str(sum(_fifth(percent) == fifth for percent in percents)) for percents in of_schedulers.values())
        rows.append([f"{low:.1f} to {high:.1f}", *counts])
    return _table(["percent", *of_schedulers], rows)


def _fifth(percent: float) -> int:
    return min(int(round(percent, 5) * FIFTHS), FIFTHS - 1)  # some steps lie on the edge, and begin a fifth


def _number(percent: float) -> str:
    return f"{percent + NUDGE:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
