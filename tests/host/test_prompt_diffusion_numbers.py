"""What the demo's Prompt Diffusion does with an example, and the demo's ControlNet with a hint, beside controls."""

from __future__ import annotations

import os

import pytest
import torch
from reins.demo.judge import judge
from reins.demo.training.control_net_numbers import load_control_net_demo
from reins.demo.training.controlnext_numbers import HINTS, draw_hinted_scenes, iou
from reins.demo.training.prompt_diffusion import PromptDiffusionTask
from reins.demo.training.prompt_diffusion_numbers import SEED, draw_mapped_scenes, errors, load_prompt_diffusion_demo
from reins.engine.loading import read_file

COUNT = 4 if os.environ.get("REINS_BRIEF") else 32 if os.environ.get("REINS_FULL") else 8


@pytest.fixture(scope="module")
def in_context():
    return load_prompt_diffusion_demo()


@pytest.fixture(scope="module")
def asked():
    return draw_mapped_scenes(COUNT)


@pytest.fixture(scope="module")
def example():
    return draw_mapped_scenes(1, SEED + 1)


@pytest.fixture(scope="module")
def nothing(asked):
    return torch.full_like(asked.words, -1)


@pytest.fixture(scope="module")
def as_shown(in_context, asked, example, nothing):
    """For each map: the same pictures again, with an example of that map and without a word."""
    return [errors(in_context.draw(nothing, example.image, shown, asked.image), asked) for shown in example.maps]


@pytest.mark.parametrize("kind", range(len(HINTS)), ids=HINTS)
def test_the_example_alone_says_which_map_is_drawn(as_shown, kind):
    found = as_shown[kind]
    assert found[kind] < 0.09
    assert all(found[kind] < 0.6 * error for other, error in enumerate(found) if other != kind)


def test_without_an_example_nothing_says_which(in_context, asked, example, nothing, as_shown):
    found = errors(in_context.draw(nothing, example.image, example.maps[0], asked.image, drop=True), asked)
    assert all(without > 1.3 * as_shown[kind][kind] for kind, without in enumerate(found))


def test_a_map_becomes_a_picture_of_it(in_context, asked, example):
    words = asked.words.clone()
    words[:, [0, 2, 3]] = -1  # shape, place and size are for the map to say
    found = judge(in_context.draw(words, example.maps[0], example.image, asked.maps[0]))
    assert iou(found.mask, asked.views.mask).mean() > 0.7
    assert iou(found.mask, asked.views.mask.roll(1, 0)).mean() < 0.4
    assert found.right(asked.words)[:, [1, 4]].float().mean() > 0.95


def test_the_shipped_file_is_what_its_task_makes():
    task = PromptDiffusionTask(torch.device("cpu"))
    found = read_file(task.file)
    assert {name: value.shape for name, value in task.parameters().items()} == {
        name: value.shape for name, value in found.items()
    }


def test_the_classic_control_net_follows_a_hint():
    steered, given = load_control_net_demo(), draw_hinted_scenes(4)
    found = judge(steered.draw(given.saying(), given.hints[0]))
    assert iou(found.mask, given.mask).mean() > 0.7
    assert iou(found.mask, given.mask.roll(1, 0)).mean() < 0.4
