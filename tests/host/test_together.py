"""Every pair of what a graph may hold, and all at once: the pack's methods beside the host's own.

The continuous run has every pair at one setting, --full at all of them.
"""

from __future__ import annotations

import itertools
import os
import random
from functools import cache

import pytest
import torch
from reins.tests.helpers import tiny_models, together
from reins.tests.helpers.methods import METHODS
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.together import INGREDIENTS, layout_for, model_of

SETTINGS = list(itertools.product((1.0, 5.0), (1, 3)))  # cfg, batch
FULL = bool(os.environ.get("REINS_FULL"))
PAIRS = [pair for pair in itertools.combinations(INGREDIENTS, 2) if layout_for(pair)]
TAKEN = [pair for pair in PAIRS if FULL or not set(pair) <= set(METHODS)]  # test_combinations has those of methods
CASES = [
    (pair, *setting)
    for pair in TAKEN
    for setting in (SETTINGS if FULL else [random.Random(str(pair)).choice(SETTINGS)])
]
EVERYTHING = {  # with partners instead of areas: test_interop
    "areas": [name for name in INGREDIENTS if name not in ("t2i adapter", "unclip", "unicon")],
    "image as text": [name for name in INGREDIENTS if name not in ("t2i adapter", "unicon", "prompt diffusion")],
    "t2i adapter": [name for name in INGREDIENTS if name not in ("unclip", "areas")],
}
LAYOUTS = {"areas": "sd15", "image as text": "adm", "t2i adapter": "four"}
AT = [(which, *setting) for which in EVERYTHING for setting in (SETTINGS if FULL else [(5.0, 1)])]


@cache
def alone(names, layout, cfg, batch):
    return together.sample(names, layout, cfg, batch)


def name(value):
    return "+".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("pair", "cfg", "batch"), CASES, ids=name)
def test_both_of_a_pair_act_in_any_order_and_in_any_batch(pair, cfg, batch, monkeypatch):
    layout = layout_for(pair)
    plain = alone((), layout, cfg, batch)
    both = together.sample(pair, layout, cfg, batch)
    assert both.isfinite().all()
    for single in pair:
        assert not nearly(both, alone((single,), layout, cfg, batch), 1e-4)
    assert nearly(together.sample(pair[::-1], layout, cfg, batch), both)
    with tiny_models.little_memory(monkeypatch, model_of(layout)):
        assert nearly(together.sample(pair, layout, cfg, batch), both)
    assert torch.equal(together.sample((), layout, cfg, batch), plain)


def test_only_what_has_no_files_for_one_model_is_no_pair():
    left_out = {pair for pair in itertools.combinations(INGREDIENTS, 2) if pair not in PAIRS}
    assert left_out == {
        ("t2i adapter", "unclip"), ("unclip", "unicon"), ("unclip", "prompt diffusion"), ("areas", "unicon"),
    }  # fmt: skip


def test_and_those_are_refused_in_plain_words():
    with pytest.raises(ValueError, match="UniCon"):
        together.sample(["unicon"], "adm")
    with pytest.raises(ValueError, match="area"):
        together.sample(["areas", "unicon"], "sd15")


@pytest.mark.parametrize(("which", "cfg", "batch"), AT)
def test_everything_at_once(which, cfg, batch, monkeypatch):
    names, layout = EVERYTHING[which], LAYOUTS[which]
    plain = alone((), layout, cfg, batch)
    found = together.sample(names, layout, cfg, batch)
    assert found.isfinite().all()
    with tiny_models.little_memory(monkeypatch, model_of(layout)):
        assert nearly(together.sample(names, layout, cfg, batch), found)
    assert torch.equal(together.sample((), layout, cfg, batch), plain)


@pytest.mark.parametrize("which", EVERYTHING)
def test_everything_at_once_in_any_order(which):
    """The LoRA first: how it shares a weight with a ControlNeXt is rounded to single precision, which SAG may show."""
    names, layout = EVERYTHING[which], LAYOUTS[which]
    found = together.sample(names, layout)
    rest = [name for name in names[::-1] if name != "lora"]
    assert nearly(together.sample(["lora", *rest], layout), found)


@pytest.mark.parametrize("which", EVERYTHING if FULL else ["areas", "image as text"])
def test_everything_at_once_needs_each_of_its_parts(which):
    names, layout = EVERYTHING[which], LAYOUTS[which]
    found = together.sample(names, layout)
    for left_out in names:
        assert not nearly(together.sample([name for name in names if name != left_out], layout), found, 1e-4), left_out
