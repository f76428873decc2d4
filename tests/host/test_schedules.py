"""Where the steps of a run lie on the axis of start_percent: the page, the sentences, the plot and the nodes agree."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import comfy.sample
import numpy as np
import pytest
import torch
from comfy.model_base import ModelType, model_sampling
from comfy.samplers import KSampler, calculate_sigmas
from comfy.supported_models import SD3, SD15, Flux
from reins.demo.schedules import HOW_TO, page
from reins.engine.run import Run
from reins.engine.scope import record_of
from reins.engine.span import Span, percent_at
from reins.nodes.look.plot import AXIS, MARK, curves, plot
from reins.tests.helpers.methods import pag, scope
from reins.tests.helpers.tiny_models import noise, text

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
SD, FLOW, FLUX = "SD1.x, SD2.x, SDXL", "SD3 (flow, shift 3)", "Flux (flow, shift 1.15)"
SHORT = {SD: "SD", FLOW: "SD3", FLUX: "Flux"}
SHIFTS = {FLOW: 3.0, FLUX: math.exp(1.15)}
SAMPLINGS = {
    SD: model_sampling(SD15, ModelType.EPS),
    FLOW: model_sampling(SD3, ModelType.FLOW),
    FLUX: model_sampling(Flux, ModelType.FLUX),
}
SCHEDULERS = list(KSampler.SCHEDULERS)
EVEN = ("simple", "sgm_uniform", "ddim_uniform", "beta", "normal")
ROUNDED = 0.000501  # a number with three digits, and single precision


def sd_log_sigmas() -> np.ndarray:
    """SD's noise levels: betas whose roots are evenly spaced from those of 0.00085 to 0.012."""
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.log(((1 - kept) / kept) ** 0.5)


def percent_by_hand(kind: str, sigma: float) -> float:
    """The progress at a sigma: 1 - timestep / 999 on SD, 1 - t on a flow.

    A flow has sigma = shift t / (1 + (shift - 1) t).
    """
    if sigma <= 0:
        return 1.0
    if kind == SD:
        return 1 - float(np.interp(math.log(sigma), sd_log_sigmas(), np.arange(1000))) / 999
    shift = SHIFTS[kind]
    return 1 - sigma / (shift - (shift - 1) * sigma)


def steps_by_hand(kind: str, scheduler: str, steps: int, denoise: float = 1.0) -> list[float]:
    """The percents of a run's steps. Image-to-image is the end of a longer schedule."""
    sigmas = calculate_sigmas(SAMPLINGS[kind], scheduler, int(steps / denoise)).tolist()
    return [percent_by_hand(kind, sigma) for sigma in (sigmas if denoise == 1 else sigmas[-(steps + 1) :])[:-1]]


def tables(said: str) -> dict[str, list[dict[str, str]]]:
    """The rows of the table below each heading, by the names of the columns."""
    found = {}
    for chapter in re.split(r"^#+ ", said, flags=re.MULTILINE)[1:]:
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in chapter.splitlines() if line[:1] == "|"
        ]
        if rows:
            found[chapter.splitlines()[0]] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


def without(said: str, schedulers: set[str]) -> dict[str, list[dict[str, str]]]:
    rows = tables(said)
    return {head: [{k: v for k, v in row.items() if k not in schedulers} for row in rows[head]] for head in rows}


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_schedulers_of_this_host_give():
    missing = set(re.findall(r"\w+", PAGE.split("| step |")[1].splitlines()[0])) - set(SCHEDULERS)
    if missing:  # on an older host: what both have
        assert without(page(), missing) == without(PAGE, missing)
    else:
        assert page() == PAGE


def test_a_host_with_fewer_schedulers_is_compared_in_those_that_it_has(monkeypatch):
    monkeypatch.setattr(KSampler, "SCHEDULERS", [name for name in SCHEDULERS if name not in ("beta", "kl_optimal")])
    assert without(page(), set()) == without(PAGE, {"beta", "kl_optimal"}) != without(PAGE, set())


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_page_says_where_each_step_lies(kind, steps):
    rows = tables(PAGE)[f"{kind}: {steps} steps"]
    for scheduler in SCHEDULERS:
        said = [float(row[scheduler]) for row in rows if row[scheduler]]
        assert said == pytest.approx(steps_by_hand(kind, scheduler, steps), abs=ROUNDED), scheduler


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_page_says_where_image_to_image_begins(kind):
    rows = [row for row in tables(PAGE)["Where image-to-image with denoise 0.5 begins"] if row["model"] == SHORT[kind]]
    assert [row["steps"] for row in rows] == ["4", "8", "20"]
    for row in rows:
        for scheduler in SCHEDULERS:
            first, *_ = steps_by_hand(kind, scheduler, int(row["steps"]), 0.5)
            assert float(row[scheduler]) == pytest.approx(first, abs=ROUNDED), scheduler


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_page_counts_the_steps_in_each_fifth(kind):
    rows = tables(PAGE)[f"{kind}: how many of 20 steps lie in each fifth of the run"]
    edges = [0.0, 0.2 - 1e-5, 0.4 - 1e-5, 0.6 - 1e-5, 0.8 - 1e-5, 1.1]  # a step on an edge belongs to what follows
    for scheduler in SCHEDULERS:
        counts = np.histogram(steps_by_hand(kind, scheduler, 20), edges)[0].tolist()
        assert [int(row[scheduler]) for row in rows] == counts, scheduler


def test_the_range_of_the_pages_example_holds_the_steps_that_it_names():
    low, high = map(float, re.search(r"a range of ([\d.]+) to ([\d.]+) holds", PAGE).groups())
    (row,) = tables(PAGE)["Where the steps lie"]
    run, to_sigma = Run(), SAMPLINGS[SD].percent_to_sigma
    for scheduler in SCHEDULERS:
        sigmas = calculate_sigmas(SAMPLINGS[SD], scheduler, 20).tolist()[:-1]
        held = [i for i, sigma in enumerate(sigmas, 1) if Span(low, high).contains(sigma, run, to_sigma)]
        ends = [held[0], held[-1]] if len(held) > 1 else held
        assert list(map(int, row[scheduler].split(" to "))) == ends, scheduler
        assert held == list(range(held[0], held[-1] + 1))


def test_ddim_uniform_makes_the_steps_that_the_page_says():
    """It takes every so many of SD's timesteps from 1 on."""
    levels = {steps: np.exp(sd_log_sigmas()[1 :: 1000 // steps]) for steps in range(1, 31)}
    said = re.search(r"up to 30 steps, SD makes what you ask for at ([\d, ]+) and (\d+) alone", PAGE)
    assert [*map(int, said[1].split(", ")), int(said[2])] == [
        steps for steps, made in levels.items() if len(made) == steps
    ]
    for row in tables(PAGE)["What ddim_uniform does with few steps"]:
        made = levels[int(row["steps asked for"])]
        assert int(row["steps made"]) == len(made)
        assert float(row["begins at percent"]) == pytest.approx(percent_by_hand(SD, made[-1]), abs=ROUNDED)
        assert float(row["begins at sigma"]) == pytest.approx(made[-1], rel=6e-3)


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_five_schedulers_lie_alike_on_all_models_and_three_the_later_the_larger_the_shift_is(steps):
    assert all(f"`{name}`" in HOW_TO for name in (*EVEN, "karras", "exponential", "kl_optimal"))
    for name in EVEN:
        for of_step in zip(*(steps_by_hand(kind, name, steps) for kind in SAMPLINGS), strict=True):
            assert max(of_step) - min(of_step) < 0.004, name
    for name in ("karras", "exponential", "kl_optimal"):
        of_kinds = [np.mean(steps_by_hand(kind, name, steps)) for kind in (SD, FLOW, FLUX)]
        assert of_kinds == sorted(of_kinds)


# --- what other pages say --------------------------------------------------------------------------------------------


def begins(denoise: float) -> dict[str, str]:
    """Where image-to-image of 20 steps begins on SD."""
    return {name: f"{steps_by_hand(SD, name, 20, denoise)[0]:.3f}" for name in SCHEDULERS}


def test_texts_say_where_image_to_image_begins():
    half, less = begins(0.5), begins(0.4)
    even = [f"`{name}`" for name in sorted(EVEN, key=half.get)]
    sentence = (
        f"begins at {min(half[name] for name in EVEN)} to {max(half[name] for name in EVEN)} with most schedulers "
        f"({', '.join(even[:-1])} and {even[-1]}), at {half['karras']} with `karras`, {half['kl_optimal']} with "
        f"`kl_optimal`, {half['exponential']} with `exponential` and {half['linear_quadratic']} with "
        "`linear_quadratic`"
    )
    for name in ("docs/nodes.md", "web/docs/Reins_PerturbedAttentionGuidance.md"):
        assert sentence in (ROOT / name).read_text(encoding="utf-8"), name
    interval = (ROOT / "web" / "docs" / "Reins_GuidanceInterval.md").read_text(encoding="utf-8")
    assert (
        f"{min(less[name] for name in EVEN)} to {max(less[name] for name in EVEN)} with most schedulers, "
        f"{less['kl_optimal']} with `kl_optimal`, {less['karras']} with `karras` and {less['exponential']} with "
        "`exponential`"
    ) in interval
    assert "On flow models `karras` and `exponential` begin above 0.98." in interval
    flows = [steps_by_hand(kind, name, 20, 0.4)[0] for kind in (FLOW, FLUX) for name in ("karras", "exponential")]
    assert min(flows) > 0.98


# --- the nodes, and Guidance Plot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_percent_of_a_sigma_is_that_of_the_formula_at_the_ends_too(kind):
    sampling, run = SAMPLINGS[kind], Run()
    top, low = float(sampling.sigma_max), float(sampling.sigma_min)
    sigmas = [top, low, 0.0, *np.geomspace(top, low, 40), *np.linspace(top, low, 40)]
    found = [percent_at(float(sigma), run, sampling.percent_to_sigma) for sigma in sigmas]
    assert found == pytest.approx([percent_by_hand(kind, float(sigma)) for sigma in sigmas], abs=2e-4)


def run_of(model, scheduler, steps, sampler="euler", denoise=1.0):
    comfy.sample.sample(
        model, noise(8, 8), steps, 5.0, sampler, scheduler, text(1), text(2), torch.zeros(1, 4, 8, 8), seed=7,
        denoise=denoise, disable_pbar=True,
    )  # fmt: skip
    return record_of(model)


@pytest.mark.parametrize("scheduler", ["karras", "simple", "kl_optimal"])
def test_a_node_acts_in_the_steps_between_two_numbers_of_the_page(scheduler, sd15):
    said = [float(row[scheduler]) for row in tables(PAGE)[f"{SD}: 8 steps"]]
    between = [(a + b) / 2 for a, b in pairwise(said)]
    record = run_of(scope(pag(sd15, start=between[1], end=between[4])), scheduler, 8)
    (norms,) = (curve.norms for curve in curves(record)[1] if curve.name == "PAG")
    assert [not math.isnan(norm) for norm in norms] == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("scheduler", "steps", "denoise"),
    [("karras", 6, 1.0), ("linear_quadratic", 4, 1.0), ("exponential", 4, 0.5), ("ddim_uniform", 6, 1.0)],
)
def test_the_plot_marks_each_step_at_its_percent(scheduler, steps, denoise, sd15):
    record = run_of(scope(sd15), scheduler, steps, denoise=denoise)
    expected = steps_by_hand(SD, scheduler, steps, denoise)
    assert record.percents() == pytest.approx(expected, abs=2e-4)
    assert marks(record) == columns(expected)


def test_the_plot_marks_both_calls_of_a_step(sd15):
    """Heun's method asks for the end of each step too, but for that of the last."""
    record = run_of(scope(sd15), "normal", 3, "heun")
    (first, second, third) = steps_by_hand(SD, "normal", 3)
    assert record.percents() == pytest.approx([first, second, second, third, third], abs=2e-4)


def test_the_plot_marks_the_steps_of_a_model_whose_schedule_a_later_node_changes(sd15):
    """The axis is that of the model which is sampled."""
    changed = scope(sd15).clone()
    changed.add_object_patch("model_sampling", SAMPLINGS[FLOW])
    comfy.sample.sample(
        changed, noise(8, 8), 4, 5.0, "euler", "karras", text(1), text(2), torch.zeros(1, 4, 8, 8), disable_pbar=True
    )
    assert record_of(changed).percents() == pytest.approx(steps_by_hand(FLOW, "karras", 4), abs=2e-4)


def marks(record) -> list[int]:
    """The columns of the plot that are dark just above the axis."""
    row = plot(record)[0, AXIS - MARK // 2]
    return (row < 0.5).all(-1).nonzero().flatten().tolist()


def columns(expected: list[float]) -> list[int]:
    """The axis goes from 72 to 760, and a mark is two pixels wide."""
    return sorted({72 + round(688 * percent) - side for percent in expected for side in (0, 1)})
