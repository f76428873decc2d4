"""What the shipped ControlNeXt reaches on the demo model, each number beside a control, and how it is trained."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch
from reins.demo.evaluate import SamplingSettings
from reins.demo.judge import judge
from reins.demo.training import convergence
from reins.demo.training.controlnext import ControlNeXtTask, cross_normalised, zero_convolution
from reins.demo.training.controlnext_numbers import FORM, HINTS, draw_hinted_scenes, iou, load_controlnext_demo
from reins.demo.training.frozen import FrozenBase
from reins.demo.training.trainer import Plan, make_optimisers
from reins.demo.world.scenes import SLOTS
from torch import Tensor
from torch.nn.functional import max_pool2d

BRIEF = bool(os.environ.get("REINS_BRIEF"))
COUNT = 8 if BRIEF else 32 if os.environ.get("REINS_FULL") else 16  # the card has 128
SETTINGS = SamplingSettings(steps=12)
CPU = torch.device("cpu")
PLACE_OF = {slot: place for place, slot in enumerate(SLOTS)}


@pytest.fixture(scope="module")
def controlled():
    return load_controlnext_demo()


@pytest.fixture(scope="module")
def given():
    return draw_hinted_scenes(COUNT)


class Followed(NamedTuple):
    """Drawn pictures beside the scenes of their hints."""

    mask: Tensor
    right: Tensor

    def common(self, masks: Tensor) -> float:
        return iou(self.mask, masks[: len(self.mask)]).mean().item()

    def rate(self, slot: str) -> float:
        return self.right[:, PLACE_OF[slot]].float().mean().item()


def followed(controlled, given, hints: Tensor, count: int, words: Tensor | None = None, **apply: object) -> Followed:
    words = given.saying() if words is None else words
    verdict = judge(controlled.draw(words[:count], hints[:count], SETTINGS, **apply))
    return Followed(verdict.mask, verdict.right(given.words[:count]))


@pytest.mark.parametrize("kind", HINTS)
def test_a_hint_of_each_kind_is_followed(kind, controlled, given):
    """The prompt says colour, ground and texture; shape, place and size are in the hint alone."""
    count = COUNT if kind == "mask" else COUNT // 2
    one = 1 / count if BRIEF else 0.0  # of so few pictures one may be wrong
    found = followed(controlled, given, given.hints[HINTS.index(kind)], count)
    assert found.common(given.mask) >= 0.8
    for slot in FORM:
        assert found.rate(slot) >= 0.85 - one, slot
    for slot in ("colour", "background", "texture"):
        assert found.rate(slot) >= 0.9 - one, slot
    assert found.common(given.mask[:count].roll(1, 0)) <= 0.35  # as two pictures have by chance


@pytest.mark.parametrize("unet_strength", [0.0, 1.0])
def test_without_the_hint_the_picture_is_elsewhere(unet_strength, controlled, given):
    """Also with the UNet's part of the file."""
    found = followed(controlled, given, given.hints[0], COUNT // 4, strength=0.0, unet_strength=unet_strength)
    assert found.common(given.mask) <= 0.4


def test_a_hint_overrules_the_words_of_place(controlled, given):
    """Prompts that say another place than the hint shows."""
    words, place = given.saying(), PLACE_OF["place"]
    words[:, place] = (given.words[:, place] + 4) % len(SLOTS["place"])
    found = followed(controlled, given, given.hints[0], COUNT // 2, words)
    assert found.common(given.mask) >= 0.6


def test_a_hint_acts_where_its_mask_is_painted(controlled, given):
    """Over the shape of the hint it is followed, outside of it alone it is not."""
    count = COUNT // 4
    around = max_pool2d(given.mask[:count, None], 7, 1, 3)[:, 0]
    inside = followed(controlled, given, given.hints[0], count, mask=around)
    outside = followed(controlled, given, given.hints[0], count, mask=1 - around)
    assert inside.common(given.mask) >= outside.common(given.mask) + 0.2


# --- training ------------------------------------------------------------------------------------------------------


def test_training_starts_where_the_method_says():
    """Zeros leave the base model as it is; Cross Normalization speaks from the first step."""

    def loss(join):
        with torch.no_grad():
            return ControlNeXtTask(CPU, join).loss(4, torch.Generator().manual_seed(0)).item()

    class Plain(ControlNeXtTask):
        def __init__(self):
            super().__init__(CPU, lambda control, feature: torch.zeros_like(feature))

    with torch.no_grad():
        plain = Plain().loss(4, torch.Generator().manual_seed(0)).item()
    assert loss(zero_convolution) == plain
    assert loss(cross_normalised) > plain


def test_both_parts_learn():
    task = ControlNeXtTask(CPU)
    parameters = task.parameters()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    task.loss(2, torch.Generator().manual_seed(0)).backward()
    silent = [name for name, value in parameters.items() if value.grad is None or not value.grad.any()]
    assert not silent
    assert any(name.startswith("unet.") for name in parameters)
    assert isinstance(task.base, FrozenBase) and not any(p.requires_grad for p in task.base.unet.parameters())


def test_the_rates_of_a_plan_choose_the_optimisers():
    parameters = ControlNeXtTask(CPU).parameters()
    names = [
        [type(optimiser).__name__ for optimiser in make_optimisers(parameters, Plan(1, 1, matrix_rate=rate))]
        for rate in (0.01, 0.0)
    ]
    assert names == [["Muon", "AdamW"], ["AdamW"]]


def test_the_comparison_of_convergence_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(convergence, "PICTURES", 2)
    monkeypatch.setattr(convergence, "SETTINGS", SamplingSettings(cfg=1.0, steps=2))
    points = convergence.measure_convergence(Plan(steps=9, batch=2), CPU, tmp_path, at=(0, 1))
    assert [point[2] for point in points] == [0, 1] * 4
    assert all(0 <= point[3] <= 1 for point in points)
    convergence.write_points(points, tmp_path / "points.csv")
    assert (tmp_path / "points.csv").read_text().startswith("join,rate,step,IoU")
    assert (tmp_path / "points.png").stat().st_size > 1000
