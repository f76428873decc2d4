"""The laws of composition on diffusion transformers: joint, joint and single, padded, and with a time axis."""

from __future__ import annotations

from functools import cache, partial
from itertools import combinations

import pytest
import torch
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.tests.helpers import steered_transformers, tiny_models
from reins.tests.helpers.flows import guided, points_of
from reins.tests.helpers.methods import apg, cfg_zero, fdg, interval, rescale, scope, swg, weak
from reins.tests.helpers.steered_transformers import MAIN, family_of
from reins.tests.helpers.tiny_models import little_memory, nearly
from reins.tests.helpers.tiny_transformers import MODELS, VIDEO, latent, noise_like, sample

FAMILIES = ("sd3", "flux", "lumina", "wan")
CLOSE = 1e-4  # of the largest value, in single precision
PICTURE = torch.rand((1, 64, 96, 3), generator=torch.Generator().manual_seed(3))
weak_of = cache(lambda family: MODELS[family](1))


def image(model, scale=0.5, start=0.0, end=1.0):
    return ImageGuidance.execute(model, "low frequencies", scale, start, end, image=PICTURE).result[0]


def weaker(family, model, **settings):
    return weak(model, weak_of(family), **settings)


def prompted(form, model, weight=1.0, start=0.0, end=1.0):
    return steered_transformers.apply(form, model, weight=weight, start_percent=start, end_percent=end)


def adapters_of(family):
    return {f"ip-adapter {form}": partial(prompted, form) for form in MAIN if family_of(form) == family}


def methods_of(family):
    windows = partial(swg, tile=48, overlap=16)
    return {
        "apg": partial(apg, norm_threshold=5.0),
        "fdg": fdg,
        "cfg-zero": partial(cfg_zero, zero_init_steps=1),
        "weak": partial(weaker, family),
        "swg": windows,
        "image": image,
        "interval": interval,
        "rescale": rescale,
        **adapters_of(family),
    }


def off_of(family):
    late = {"start": 0.9, "end": 0.91}
    methods = methods_of(family)
    off = {f"{name} out of range": partial(method, **late) for name, method in methods.items() if is_ranged(name)}
    off |= {f"{name} weight 0": partial(adapter, weight=0.0) for name, adapter in adapters_of(family).items()}
    neutral = {
        "apg neutral": partial(apg, eta=1.0, norm_threshold=0.0, momentum=0.0),
        "fdg factors 1": partial(fdg, low=1.0, high=1.0),
        "weak scale 0": partial(weaker, family, scale=0.0),
        "swg scale 0": partial(swg, scale=0.0),
        "swg of one window": partial(swg, tile=512),
        "image scale 0": partial(image, scale=0.0),
        "interval everywhere": partial(interval, start=0.0, end=1.0),
        "rescale 0": partial(rescale, rescale=0.0),
        "scope": scope,
    }
    return {**off, **neutral}


RANGED = ("apg", "fdg", "cfg-zero", "weak", "swg", "image")
TERMS = ("apg", "fdg", "cfg-zero", "weak", "swg")
of_family = pytest.mark.parametrize("family", FAMILIES)


def is_ranged(name):
    return name.split()[0] in (*RANGED, "ip-adapter")


def each(methods):
    """Cases of every method of every family."""
    cases = [(family, name) for family in FAMILIES for name in methods(family)]
    return pytest.mark.parametrize(("family", "name"), cases)


of_each = each(methods_of)


def one_frame(family):
    return {"frames": 1} if family in VIDEO else {}


def frames_for(family, name):
    """Videos of three frames, but for methods that take one alone."""
    return one_frame(family) if name.split()[0] in ("swg", "image") else {}


@each(off_of)
@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_a_method_that_is_off_changes_no_bit(cfg, name, family):
    model, frames = MODELS[family](), frames_for(family, name)
    assert torch.equal(sample(family, off_of(family)[name](model), cfg, **frames), sample(family, model, cfg, **frames))


@of_each
def test_a_batch_of_two_is_two_of_one(name, family):
    frames = frames_for(family, name)
    model, noise = MODELS[family](), noise_like(latent(family, batch=2, **frames))
    steered = methods_of(family)[name](model)
    found = sample(family, steered, batch=2, steps=3, start=noise, **frames)
    for i in range(2):
        alone = sample(family, steered, steps=3, start=noise[i : i + 1], **frames)
        assert nearly(found[i : i + 1], alone, CLOSE)
    assert not nearly(found, sample(family, model, batch=2, steps=3, start=noise, **frames), 1e-3)


@of_each
def test_at_cfg_one_corrections_of_cfg_change_nothing_and_there_is_no_negative(name, family):
    model, frames = MODELS[family](), frames_for(family, name)
    with tiny_models.forwards(model) as rows:
        found = sample(family, methods_of(family)[name](model), 1.0, **frames)
    plain = sample(family, model, 1.0, **frames)
    if name.split()[0] in ("weak", "swg", "image", "ip-adapter"):
        assert not nearly(found, plain, 1e-3)
    elif name == "rescale":  # of a result that has the positive's deviation already
        assert nearly(found, plain, CLOSE)
    else:
        assert torch.equal(found, plain)
    assert rows == ([1, 6, 1, 6] if name == "swg" else [1, 1])  # six windows of 6 x 6 cells over 8 x 12


@of_each
def test_split_batches_give_the_same(name, family, monkeypatch):
    model, frames = MODELS[family](), frames_for(family, name)
    steered = methods_of(family)[name](model)
    whole = sample(family, steered, batch=2, **frames)
    with little_memory(monkeypatch, model):
        assert nearly(sample(family, steered, batch=2, **frames), whole, CLOSE)


@of_family
@pytest.mark.parametrize("pair", list(combinations(TERMS, 2)), ids="+".join)
def test_two_methods_are_the_sum_of_their_single_effects_in_both_orders(pair, family):
    model = MODELS[family]()
    first, second = (methods_of(family)[name] for name in pair)
    points = points_of(family, model, **one_frame(family))
    plain, one, two, both, turned = (
        guided(family, steered, points)[0]
        for steered in (model, first(model), second(model), second(first(model)), first(second(model)))
    )
    assert nearly(both, one + two - plain, CLOSE) and nearly(turned, both, CLOSE)


@of_each
def test_a_run_leaves_the_model_as_it_was_and_repeats_itself(name, family):
    model, frames = MODELS[family](), frames_for(family, name)
    before, options = sample(family, model, **frames), str(model.model_options)
    steered = methods_of(family)[name](model)
    assert torch.equal(sample(family, steered, **frames), sample(family, steered, **frames))
    assert torch.equal(sample(family, model, **frames), before)
    assert str(model.model_options) == options
