"""What must hold for every method, alone and in pairs."""

from __future__ import annotations

import gc
import itertools
import weakref

import comfy.model_base
import comfy.model_management
import pytest
import torch
from comfy.model_base import ModelType
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import COVERED, METHODS, OFF, fit, interval, rescale
from reins.tests.helpers.tiny_models import nearly, sample

TERMS = ("pag", "seg", "seg-narrow", "sag", "tpg", "swg", "weak")
CORRECTIONS = ("apg", "fdg", "cfg-zero")  # they add up with terms as terms do
SIZES = [(5, 7), (33, 6), (9, 40), (17, 24)]
NOT_FOR = (("sd2", "controlnext"), ("sd2", "unicon"), ("sdxl", "unicon"))  # there is none, and the nodes say so
PAIRS = list(itertools.combinations(COVERED, 2))


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_a_method_that_is_off_changes_no_bit(name, cfg, model):
    assert torch.equal(sample(OFF[name](model), cfg=cfg), sample(model, cfg=cfg))


def test_a_method_has_an_effect(method, model):
    assert not nearly(sample(method(model)), sample(model), 1e-3)


def test_a_method_repeats_itself_bit_by_bit(method, sd15):
    steered = method(sd15)
    assert torch.equal(sample(steered), sample(steered))


def test_a_batch_of_two_is_two_of_one(method, model):
    steered, start = fit(method, (12, 16))(model), tiny_models.noise(12, 16, b=2)
    both = sample(steered, (12, 16), batch=2, start=start)
    for i in range(2):
        assert nearly(sample(steered, (12, 16), start=start[i : i + 1])[0], both[i])


def test_split_batches_give_the_same(method, model, monkeypatch):
    steered = method(model)
    whole = sample(steered)
    with tiny_models.little_memory(monkeypatch, model), tiny_models.forwards(model) as rows:
        split = sample(steered)
    assert set(rows) == {2 if method is METHODS["unicon"] else 1}
    assert nearly(split, whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_every_size_works(method, model, size, cfg):
    assert sample(fit(method, size)(model), size, cfg=cfg, steps=2).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(method, dtype):
    model = tiny_models.sd15(dtype=dtype)
    with tiny_models.forwards(model) as rows:
        assert sample(method(model), steps=2).isfinite().all()
    assert rows


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW])
def test_every_kind_of_prediction_is_steered(method, kind):
    model = tiny_models.sd15(kind=kind)
    plain, steered = sample(model), sample(method(model))
    assert steered.isfinite().all()
    assert not nearly(steered, plain, 1e-4)


def test_the_input_model_stays_as_it_was(method, sd15):
    before = sample(sd15)
    options, wrappers = str(sd15.model_options), str(sd15.wrappers)
    method(sd15)
    assert (options, wrappers) == (str(sd15.model_options), str(sd15.wrappers))
    assert torch.equal(sample(sd15), before)


def test_a_sampled_model_is_let_go_at_once(method, sd15):
    """Without a cycle of references: freed by the collector, it would be a leak in the eyes of the host."""
    gc.collect()
    gc.disable()
    try:
        model = method(sd15)
        sample(model, steps=2)
        steered = weakref.ref(model)
        del model
        assert steered() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_branches_of_one_trunk_do_not_see_each_other(pair, sd15):
    trunk = METHODS[pair[0]](sd15)
    alone = sample(trunk, steps=2)
    branch = METHODS[pair[1]](trunk)
    other = METHODS[pair[1]](METHODS[pair[1]](trunk))
    assert torch.equal(sample(trunk, steps=2), alone)
    assert not torch.equal(sample(branch, steps=2), sample(other, steps=2)) or pair[1] in ("interval", "rescale")
    assert torch.equal(sample(trunk.clone().clone(), steps=2), alone)


@pytest.mark.parametrize("pair", list(itertools.permutations(TERMS + CORRECTIONS, 2)), ids="+".join)
def test_terms_commute(pair, sd15):
    first, second = (METHODS[name] for name in pair)
    assert nearly(sample(second(first(sd15))), sample(first(second(sd15))), 2e-5)


@pytest.mark.parametrize("pair", list(itertools.combinations(TERMS + CORRECTIONS, 2)), ids="+".join)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_two_terms_are_the_sum_of_their_single_effects(pair, sd15, cfg):
    """One prediction at one sigma: the effect of both is the sum of the effects."""
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(tiny_models.text(1)[0][0])]
    negative = [tiny_models.cond(tiny_models.text(2)[0][0])]
    first, second = (METHODS[name] for name in pair)
    plain, a, b, both = (
        tiny_models.denoise(model, x, 3.0, positive, negative, cfg)
        for model in (sd15, first(sd15), second(sd15), second(first(sd15)))
    )
    assert nearly(both, a + b - plain, 2e-5)
    assert not nearly(both, a, 1e-3) or (cfg == 1 and pair[1] in CORRECTIONS)


@pytest.mark.parametrize("name", TERMS)
def test_two_nodes_of_a_kind_act_twice(name, sd15):
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(tiny_models.text(1)[0][0])]
    negative = [tiny_models.cond(tiny_models.text(2)[0][0])]
    method = METHODS[name]
    plain, once, twice = (
        tiny_models.denoise(model, x, 3.0, positive, negative, 5.0)
        for model in (sd15, method(sd15), method(method(sd15)))
    )
    assert nearly(twice - plain, 2 * (once - plain), 1e-4)


@pytest.mark.parametrize("layout", ["sd15", "sd2", "sdxl"])
def test_all_methods_together_run_on_every_layout(layout):
    steered = model = getattr(tiny_models, layout)()
    for name, method in METHODS.items():
        if (layout, name) not in NOT_FOR:
            steered = fit(method, (9, 14))(steered)
    with tiny_models.forwards(model) as rows:
        assert sample(steered, (9, 14), batch=2, steps=4).isfinite().all()
    branches = 2 if layout == "sd15" else 1
    # positive, negative, both edited, and four terms, two pictures each, in one call
    assert max(rows) == 2 * 8 * branches


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.FLOW])
def test_an_interrupted_run_leaves_nothing_behind(method, kind):
    model = tiny_models.sd15(kind=kind)
    steered = method(model)
    expected = sample(steered)

    def stop(*_: object) -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(steered, callback=stop)
    assert torch.equal(sample(steered), expected)
    assert "reins_run" not in steered.model_options["transformer_options"]


@pytest.mark.parametrize("sampler", ["dpm_2", "heun", "dpmpp_2m_sde", "uni_pc"])
def test_samplers_of_every_kind_work(method, sd15, sampler):
    assert sample(method(sd15), sampler=sampler, steps=4).isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_rescale_reads_the_sum_of_all_terms(name, sd15):
    """The last word on contrast: with full rescale the prediction deviates as the positive's does."""
    x, positive = 3 * tiny_models.noise(), [tiny_models.cond(tiny_models.text(1)[0][0])]
    negative = [tiny_models.cond(tiny_models.text(2)[0][0])]
    out = tiny_models.denoise(rescale(METHODS[name](sd15), 1.0), x, 3.0, positive, negative, 5.0)
    alone = tiny_models.denoise(sd15, x, 3.0, positive, None, 1.0)
    torch.testing.assert_close((x - out).std(), (x - alone).std())  # eps models: x - x0 is sigma * eps


def test_the_interval_saves_the_negative_outside(model):
    with tiny_models.forwards(model) as rows:
        sample(interval(model, 0.3, 0.6), steps=10)
    assert sorted(set(rows)) == [1, 2]
    assert rows.count(2) == 3  # of ten steps, those between 30 % and 60 %
