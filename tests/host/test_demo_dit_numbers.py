"""What methods reach on the demo model's transformer, as numbers: each beside the same without it."""

from __future__ import annotations

import pytest
import torch
from reins.demo.evaluate import AT_ONCE, Score, gain, gain_of_shapes, prompts, sample, score
from reins.demo.training.dit_ip_adapter_numbers import load_dit_ip_adapter_demo
from reins.demo.training.dit_numbers import (
    BURNT,
    FLOW,
    FREE,
    colours_drawn,
    colours_kept,
    corrected,
    guided,
    load_dit,
    with_better_shapes,
)
from reins.demo.training.guidance_numbers import clipped
from reins.demo.training.ip_adapter_numbers import FORM, references
from reins.demo.training.numbers import GUIDANCE_SEED
from reins.demo.world.scenes import SLOTS

COUNT = 48


@pytest.fixture(scope="module")
def dit():
    return load_dit()


@pytest.fixture(scope="module")
def free() -> torch.Tensor:
    return torch.full((COUNT, len(SLOTS)), -1)


@pytest.fixture(scope="module")
def unguided(dit, free) -> Score:
    return score(sample(*dit, free, FREE, GUIDANCE_SEED), free)


@pytest.fixture(scope="module")
def worded(dit) -> tuple[torch.Tensor, Score]:
    """Prompts, and the pictures of them without guidance."""
    words = prompts(COUNT)
    return words, score(sample(*dit, words, FREE, GUIDANCE_SEED), words)


def test_pag_clears_up_pictures_that_no_word_guides(dit, free, unguided):
    change = gain(score(sample(guided(dit[0])["PAG"], dit[1], free, FREE, GUIDANCE_SEED), free), unguided)
    assert change.mean > 2 * change.error
    assert change.better > 0.55


@pytest.mark.parametrize("name", ["SLG", "SEG"])
def test_skipped_layers_and_smoothed_energy_draw_the_shapes_better_that_words_ask_for(dit, worded, name):
    words, before = worded
    after = score(sample(with_better_shapes(dit[0])[name], dit[1], words, FREE, GUIDANCE_SEED), words)
    shapes = gain_of_shapes(after, before)
    assert shapes.mean > 2 * shapes.error
    assert shapes.better > 0.55
    assert gain(after, before).mean > 0


def test_a_negative_that_names_a_colour_drives_it_out_without_cfg(dit):
    model, table = dit
    before = colours_drawn(model, table, AT_ONCE)
    named, others = (colours_kept(model, table, before, shift) for shift in (0, 1))
    assert named < 0.4
    assert others > named + 0.1


@pytest.fixture(scope="module")
def prompted():
    return load_dit_ip_adapter_demo(), references(16)


def test_the_ip_adapter_draws_what_the_reference_shows(prompted):
    demo, given = prompted
    words, wanted = given.saying(())
    drawn = demo.draw(words, given.image, FLOW, weight=1.0)
    found, others = score(drawn, wanted).rates, score(drawn, wanted.roll(1, 0)).rates
    without = score(demo.draw(words, given.image, FLOW, weight=0.0), wanted).rates
    assert found["all"] > 0.4 and others["all"] < 0.1 and without["all"] < 0.1
    assert all(found[slot] > 0.85 for slot in ("colour", "place", "size", "background", "texture"))


def test_the_prompt_keeps_its_words_beside_a_reference_that_shows_others(prompted):
    demo, given = prompted
    words, wanted = given.saying(FORM)
    found = score(demo.draw(words, given.image, FLOW, weight=1.0), wanted).rates
    assert all(found[slot] > 0.85 for slot in FORM)
    assert found["background"] > 0.85 and found["texture"] > 0.85 and found["colour"] > 0.6


@pytest.fixture(scope="module")
def burnt(dit) -> Score:
    """At cfg 12, four times what the model wants."""
    return at_cfg_12(dit, "plain")


def at_cfg_12(dit, name: str) -> Score:
    words = prompts(16)
    return score(sample(corrected(dit[0])[name], dit[1], words, BURNT), words)


def test_apg_keeps_a_high_cfg_from_burning_the_picture(dit, burnt):
    apg = at_cfg_12(dit, "APG")
    assert clipped(apg.image) < 0.5 * clipped(burnt.image)
    assert apg.quality > burnt.quality
    assert apg.rates["all"] >= burnt.rates["all"] - 1 / 16


def test_cfg_zero_brings_a_high_cfg_nearer_to_what_was_asked(dit, burnt):
    zero = at_cfg_12(dit, "CFG-Zero*, first step zero")
    assert zero.verdict.template_error.mean() < burnt.verdict.template_error.mean()
