"""Methods together over all other axes at once: a seeded covering set, or with `dev.py test --full` many more.

The continuous run has groups of five in which every pair stands once or more, --full has each pair alone, in both
orders, four times.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest
import torch
from comfy.model_base import ModelType
from reins.tests.helpers import tiny_models
from reins.tests.helpers.conds import areas, controlled, masks
from reins.tests.helpers.methods import COVERED, METHODS, SEEN_WHOLE, fit
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import nearly, sample, text

AXES = {
    "layout": ["sd15", "sdxl"],
    "kind": [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW],
    "cfg": [1.0, 5.0],
    "size": [(16, 16), (5, 7), (12, 31), (40, 9)],
    "batch": [1, 2],
    "conds": ["text", "several", "areas", "masks", "control"],
    "sampler": ["euler", "heun", "dpmpp_2m"],
}
GROUP = 5
CONDS = {
    "text": text,
    "several": lambda seed: text(seed) + text(seed + 10, tokens=10),
    "areas": areas,
    "masks": masks,
    "control": controlled,
}


def groups(names, generator):
    """Groups of methods until every pair has met; each is filled with those that meet most others anew."""
    left = set(itertools.combinations(names, 2))
    while left:
        group = list(generator.choice(sorted(left)))
        while len(group) < GROUP:
            others = [name for name in names if name not in group]
            met = {name: sum(tuple(sorted((name, one), key=names.index)) in left for one in group) for name in others}
            group.append(max(generator.sample(others, len(others)), key=met.__getitem__))
        left -= set(itertools.combinations(sorted(group, key=names.index), 2))
        yield tuple(generator.sample(group, GROUP))


def draws():
    """Every group with the other axes drawn at random, the same each time."""
    generator = random.Random(0)
    if os.environ.get("REINS_FULL"):
        found = list(itertools.permutations(COVERED, 2)) * 4
    else:
        found = list(groups(COVERED, generator))
    for group in found:
        case = {axis: generator.choice(values) for axis, values in AXES.items()}
        if case["conds"] == "areas" and set(group) & set(SEEN_WHOLE):
            case["conds"] = "masks"
        if "unicon" in group:
            case["layout"] = "sd15"
        if case["conds"] in ("areas", "masks"):
            case["size"] = (16, 16)
        if case["conds"] == "control":
            case["layout"] = "sd15"
        yield group, case


def name(value):
    return "+".join(value) if isinstance(value, tuple) else "-".join(str(v) for v in value.values())


def test_every_pair_of_methods_meets_in_a_group():
    met = {frozenset(pair) for group, _ in draws() for pair in itertools.combinations(group, 2)}
    assert met == {frozenset(pair) for pair in itertools.combinations(COVERED, 2)}


@pytest.mark.parametrize(("group", "case"), list(draws()), ids=name)
def test_methods_together_give_the_same_however_they_are_evaluated(group, case, monkeypatch):
    """In one batch; chunk by chunk; and with another pack in the host's slot."""
    model = getattr(tiny_models, case["layout"])(kind=case["kind"], dtype=torch.float64)
    methods = [fit(METHODS[name], case["size"]) for name in group]
    conds = {"positive": CONDS[case["conds"]](1), "negative": CONDS[case["conds"]](2)}
    settings = {"size": case["size"], "batch": case["batch"], "cfg": case["cfg"], "sampler": case["sampler"]}

    def run(model):
        for method in methods:
            model = method(model)
        return sample(model, steps=3, **conds, **settings)

    together = run(model)
    assert together.isfinite().all()
    with tiny_models.little_memory(monkeypatch, model):
        assert nearly(run(model), together)
    assert nearly(run(pass_through(model)), together)
