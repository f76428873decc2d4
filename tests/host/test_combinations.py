"""Pairs of methods over all other axes at once: a seeded covering set, or with `dev.py test --full` many more.

The continuous run has every pair in one order or the other, --full has both, twelve times.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest
import torch
from comfy.model_base import ModelType
from reins.tests import tiny
from reins.tests.host.test_batch import areas, controlled, masks, pass_through
from reins.tests.methods import COVERED, METHODS, SEEN_WHOLE, fit
from reins.tests.tiny import nearly, sample, text

AXES = {
    "layout": ["sd15", "sdxl"],
    "kind": [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW],
    "cfg": [1.0, 5.0],
    "size": [(16, 16), (5, 7), (12, 31), (40, 9)],
    "batch": [1, 2],
    "conds": ["text", "several", "areas", "masks", "control"],
    "sampler": ["euler", "heun", "dpmpp_2m"],
}
CONDS = {
    "text": text,
    "several": lambda seed: text(seed) + text(seed + 10, tokens=10),
    "areas": areas,
    "masks": masks,
    "control": controlled,
}


def draws():
    """Every pair with the other axes drawn at random, the same each time."""
    generator = random.Random(0)
    if os.environ.get("REINS_FULL"):
        pairs = list(itertools.permutations(COVERED, 2)) * 12
    else:
        pairs = [tuple(generator.sample(pair, 2)) for pair in itertools.combinations(COVERED, 2)]
    for pair in pairs:
        case = {axis: generator.choice(values) for axis, values in AXES.items()}
        if case["conds"] == "areas" and set(pair) & set(SEEN_WHOLE):
            case["conds"] = "masks"
        if "unicon" in pair:
            case["layout"] = "sd15"
        if case["conds"] in ("areas", "masks"):
            case["size"] = (16, 16)
        if case["conds"] == "control":
            case["layout"] = "sd15"
        yield pair, case


def name(value):
    return "+".join(value) if isinstance(value, tuple) else "-".join(str(v) for v in value.values())


@pytest.mark.parametrize(("pair", "case"), list(draws()), ids=name)
def test_a_pair_gives_the_same_however_it_is_evaluated(pair, case, monkeypatch):
    """In one batch; chunk by chunk; and with another pack in the host's slot."""
    model = getattr(tiny, case["layout"])(kind=case["kind"], dtype=torch.float64)
    first, second = (fit(METHODS[method], case["size"]) for method in pair)
    conds = {"positive": CONDS[case["conds"]](1), "negative": CONDS[case["conds"]](2)}
    settings = {"size": case["size"], "batch": case["batch"], "cfg": case["cfg"], "sampler": case["sampler"]}

    def run(steered):
        return sample(steered, steps=3, **conds, **settings)

    together = run(second(first(model)))
    assert together.isfinite().all()
    with tiny.little_memory(monkeypatch, model):
        assert nearly(run(second(first(model))), together)
    assert nearly(run(second(first(pass_through(model)))), together)
