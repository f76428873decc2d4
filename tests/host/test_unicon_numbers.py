"""What the demo's UniCon reaches in its five uses, each beside a control that must fail its bound."""

from __future__ import annotations

import os

import pytest
import torch
from reins.demo.evaluate import SamplingSettings, sample
from reins.demo.judge import judge
from reins.demo.training.unicon import UniConTask
from reins.demo.training.unicon_numbers import depth_of, draw_depth_scenes, error, load_unicon_demo
from reins.engine.loading import read_file

BRIEF, FULL = (bool(os.environ.get(name)) for name in ("REINS_BRIEF", "REINS_FULL"))
COUNT = 4 if BRIEF else 64 if FULL else 8
WITHOUT_CFG = SamplingSettings(cfg=1.0)  # half the rows; the words are followed without it too
LOOK = (1, 4, 5)  # colour, background and texture, which no depth map shows


@pytest.fixture(scope="module")
def beside():
    return load_unicon_demo()


@pytest.fixture(scope="module")
def given():
    return draw_depth_scenes(COUNT)


@pytest.fixture(scope="module")
def followed(beside, given):
    """Pictures beside their depth maps; the words say the look alone."""
    return judge(beside.image(given.saying(), given.depth))


def test_a_picture_has_the_depth_that_is_given(followed, given):
    assert error(depth_of(followed), given.views.depth) < 0.025
    assert error(depth_of(followed), given.views.depth.roll(1, 0)) > 0.06


def test_and_the_look_that_the_words_say(followed, given):
    assert followed.right(given.words)[:, LOOK].float().mean() > 0.95


def test_without_its_partner_a_picture_has_another_depth(beside, given):
    found = judge(beside.image(given.saying(), given.depth, WITHOUT_CFG, strength_x=0.0, strength_y=0.0))
    assert error(depth_of(found), given.views.depth) > 0.06


def test_the_depth_of_a_picture_is_found_without_a_word(beside, given):
    nothing = torch.full_like(given.words, -1)
    found = beside.depth(nothing, given.views.image, WITHOUT_CFG).mean(1)
    true = given.views.depth
    assert error(found, true) < 0.035
    assert error(found, true.roll(1, 0)) > 0.06


def test_a_picture_and_its_depth_are_drawn_together(beside, given):
    pairs = beside.both(given.words, settings=WITHOUT_CFG)
    found, depth = judge(pairs.image), pairs.depth.mean(1)
    assert error(depth_of(found), depth) < 0.04 < 0.06 < error(depth_of(found), depth.roll(1, 0))
    assert found.right(given.words).float().mean() > 0.95


@pytest.mark.parametrize("clocks", [False, True], ids=["ratio", "two clocks"])
def test_the_more_noise_a_condition_has_the_less_it_is_followed(clocks, beside, given):
    errors, some = [], slice(max(4, COUNT // 2))
    for noise in (0.3, 0.5, 1.0) if clocks else (0.25, 0.6, 1.0):
        said = {"schedule": f"x 0-1, y {1 - noise:g}-1"} if clocks else {"condition_noise": noise}
        found = judge(beside.both(given.saying()[some], given.depth[some], settings=WITHOUT_CFG, **said).image)
        errors.append(error(depth_of(found), given.views.depth[some]))
    assert errors[0] < 0.025 and errors[2] > 0.06
    assert BRIEF or errors[0] + 0.01 < errors[1] + 0.01 < errors[2]


def test_with_both_strengths_at_0_the_model_draws_as_ever(beside, given):
    words = given.words[:4]
    off = beside.image(words, given.depth[:4], WITHOUT_CFG, strength_x=0.0, strength_y=0.0)
    assert torch.equal(off, sample(beside.model, beside.table, words, WITHOUT_CFG))


def test_the_shipped_file_is_one_of_the_official_form_under_two_megabytes():
    assert UniConTask.file.stat().st_size < 2e6
    assert set(read_file(UniConTask.file)) == set(UniConTask(torch.device("cpu")).parameters())
