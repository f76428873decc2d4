"""An IP-Adapter on a transformer gives what its formula gives, put into the network by hooks of torch."""

from __future__ import annotations

import pytest
import torch
from reins.models.ip_adapter.combine import combine as combined
from reins.tests.helpers.hooked_ip_adapters import xlabs_added
from reins.tests.helpers.steered_transformers import (
    FORMS,
    MAIN,
    NOTHING,
    added,
    apply,
    begun,
    by_formula,
    file_of,
    read,
)
from reins.tests.helpers.tiny_models import forwards, little_memory, nearly
from reins.tests.helpers.tiny_transformers import MODELS, sample, text
from reins.tests.helpers.transformers_by_hand import both_texts, predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)


@EACH
@pytest.mark.parametrize("weight", [1.0, 0.4, -0.6])
def test_at_cfg_1_the_prediction_is_that_of_the_formula(form, weight):
    family, model, x = begun(form)
    positive = text(1, family=family)
    found = predict(family, apply(form, model, weight=weight), x, positive)
    assert nearly(found, by_formula(form, model, x, positive, weight=weight), 1e-5)
    assert not nearly(found, predict(family, model, x, positive), 1e-3)


@EACH
@pytest.mark.parametrize("texts", [(5, 5), (5, 9)], ids=["one call", "two calls"])
def test_the_positive_reads_the_picture_and_the_negative_reads_nothing(form, texts):
    family, model, x = begun(form, batch=3)
    positive, negative = both_texts(family, texts)
    found = predict(family, apply(form, model, weight=0.7), x, positive, 4.0, negative=negative)
    a = by_formula(form, model, x, positive, weight=0.7)
    b = by_formula(form, model, x, negative, NOTHING, weight=0.7)
    assert nearly(found, b + 4.0 * (a - b), 2e-5)
    assert not nearly(found, predict(family, model, x, positive, 4.0, negative=negative), 1e-3)


@EACH
@pytest.mark.parametrize(
    "off",
    [
        {"weight": 0.0}, {"start_percent": 0.9, "end_percent": 0.91}, {"only_for": "nobody"},
        {"mask": torch.zeros(1, 8, 8)}, {"weight_type": "custom", "layer_weights": "0:0, 1:0"},
    ],
    ids=["weight", "range", "name", "mask", "layers"],
)  # fmt: skip
@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_an_adapter_that_is_off_changes_no_bit(form, off, cfg):
    family, model, _ = begun(form)
    assert torch.equal(sample(family, apply(form, model, **off), cfg, batch=2), sample(family, model, cfg, batch=2))


@EACH
def test_a_batch_is_its_pictures_one_by_one(form):
    family, model, start = begun(form, batch=3)
    steered = apply(form, model)
    both = sample(family, steered, batch=3, start=start)
    for row in range(3):
        assert nearly(both[row : row + 1], sample(family, steered, start=start[row : row + 1]), 1e-5)


@EACH
@pytest.mark.parametrize("batch", [1, 3])
def test_split_batches_give_the_same(form, batch, monkeypatch):
    family, model, _ = begun(form)
    steered = apply(form, model)
    whole = sample(family, steered, batch=batch)
    with little_memory(monkeypatch, model), forwards(model) as rows:
        split = sample(family, steered, batch=batch)
    assert set(rows) == {batch}
    assert nearly(split, whole, 1e-5)


@EACH
def test_two_adapters_add_up_in_either_order(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    one, two = {"weight": 0.7}, {"file": 1, "weight": 0.5}
    forth = predict(family, apply(form, apply(form, model, 4, **one), 5, **two), x, positive)
    back = predict(family, apply(form, apply(form, model, 5, **two), 4, **one), x, positive)
    with added(form, model, 4, **one):
        expected = by_formula(form, model, x, positive, 5, **two)
    assert nearly(forth, expected, 1e-5)
    assert nearly(back, forth, 1e-5)
    assert not nearly(forth, by_formula(form, model, x, positive, 4, **one), 1e-3)


@EACH
def test_an_adapter_twice_is_one_of_the_sum_of_their_weights(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    twice = predict(family, apply(form, apply(form, model, weight=0.7), weight=0.4), x, positive)
    assert nearly(twice, predict(family, apply(form, model, weight=1.1), x, positive), 1e-5)


@OF_MAIN
def test_one_adapter_acts_on_two_models_alike(form):
    family, model, x = begun(form)
    other, positive = MODELS[family](1), text(1, family=family)
    for one in (model, other, model):
        found = predict(family, apply(form, one), x, positive)
        assert nearly(found, by_formula(form, one, x, positive), 1e-5)


@OF_MAIN
def test_blocks_have_the_weights_of_custom(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    found = predict(family, apply(form, model, weight_type="custom", layer_weights="1:0.5"), x, positive)
    assert not nearly(found, predict(family, model, x, positive), 1e-4)
    count = {"sd3": 3, "xlabs": 2, "instantx": 4}[form]
    rest = ", ".join(f"{i}:1" for i in range(count) if i != 1)
    once = apply(form, model, weight_type="custom", layer_weights="1:1")
    both = apply(form, once, weight_type="custom", layer_weights=rest)
    assert nearly(predict(family, both, x, positive), by_formula(form, model, x, positive), 1e-5)


@EACH
def test_several_pictures_are_read_as_one(form):
    """Two tokens with the same key and value count as one of twice the weight, so the same picture twice is special."""
    family, model, x = begun(form)
    positive = text(1, family=family)
    weighted = apply(form, model, 4, 5, encode={"image_weights": "2, 1"})
    repeated = apply(form, model, 4, 4, 5)
    found = predict(family, weighted, x, positive)
    assert nearly(found, predict(family, repeated, x, positive), 1e-5)
    assert not nearly(found, predict(family, apply(form, model, 4, 5), x, positive), 1e-4)
    for both, one in (((4, 5), "1, 0"), ((5, 4), "0, 1")):
        single = apply(form, model, *both, encode={"image_weights": one})
        assert nearly(predict(family, single, x, positive), by_formula(form, model, x, positive), 1e-5)


@OF_MAIN
@pytest.mark.parametrize("combine", ["average", "norm average", "add", "subtract", "slerp"])
def test_combined_pictures_are_one_picture(form, combine):
    family, model, x = begun(form)
    positive, weights = text(1, family=family), torch.tensor([1.0, 0.5])
    steered = apply(form, model, 4, 5, encode={"image_weights": "1, 0.5", "combine": combine})
    one = combined(read(form, 4, 5), weights, combine)
    with FORMS[form].added(model, file_of(form), one):
        expected = predict(family, model, x, positive)
    assert nearly(predict(family, steered, x, positive), expected, 1e-5)


@EACH
@pytest.mark.parametrize("scaling", ["V only", "K+V"])
def test_each_frame_reads_its_picture_with_its_weight(form, scaling):
    family, model, x = begun(form, batch=3)
    positive = text(1, family=family)
    steered = apply(form, model, 4, 5, weight=0.8, encode={"image_weights": "0.5, 2"}, per_frame=True, scaling=scaling)
    found = predict(family, steered, x, positive)
    for row, (picture, weight) in enumerate([(4, 0.4), (5, 1.6), (5, 1.6)]):
        one = apply(form, model, picture, weight=weight, scaling=scaling)
        assert nearly(found[row : row + 1], predict(family, one, x[row : row + 1], positive), 1e-5)


def test_keys_that_are_weighted_too_are_those_of_a_file_with_weighted_matrices():
    family, model, x = begun("xlabs")
    positive, weight = text(1, family=family), 0.6
    weighted = {key: value * weight if "_k_proj" in key else value for key, value in file_of("xlabs").items()}
    with xlabs_added(model, weighted, read("xlabs", 4), weight):
        expected = predict(family, model, x, positive)
    found = predict(family, apply("xlabs", model, weight=weight, scaling="K+V"), x, positive)
    assert nearly(found, expected, 1e-5)
    assert not nearly(found, by_formula("xlabs", model, x, positive, weight=weight), 1e-3)


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
def test_keys_that_are_weighted_too_are_those_of_weighted_norms(form):
    family, model, x = begun(form)
    positive, weight = text(1, family=family), 0.6
    weighted = {key: value * weight if "norm_ip_k" in key else value for key, value in file_of(form).items()}
    with FORMS[form].added(model, weighted, read(form, 4), weight):
        expected = predict(family, model, x, positive)
    found = predict(family, apply(form, model, weight=weight, scaling="K+V"), x, positive)
    assert nearly(found, expected, 1e-5)
    assert not nearly(found, by_formula(form, model, x, positive, weight=weight), 1e-4)


@EACH
@pytest.mark.parametrize("cfg", [4.0, 1.0])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_sde", "uni_pc"])
def test_a_run_of_any_sampler_is_that_of_the_formula(form, sampler, cfg):
    """SD3's tokens follow the noise level of each evaluation."""
    family, model, start = begun(form)
    settings = {"cfg": cfg, "steps": 4, "start": start, "sampler": sampler}
    found = sample(family, apply(form, model, weight=0.7), **settings)
    with added(form, model, *((NOTHING, 4) if cfg > 1 else (4,)), weight=0.7):
        expected = sample(family, negatives_first(model), **settings)
    assert nearly(found, expected, 1e-4)
    assert not nearly(found, sample(family, model, **settings), 1e-3)


def negatives_first(model):
    """A model whose rows come to the network with the negative first."""

    def send(apply_model, args):
        labels = args["cond_or_uncond"]
        order = sorted(range(len(labels)), key=lambda i: labels[i] != 1)
        rows = lambda value: torch.cat([value.chunk(len(labels))[i] for i in order])  # noqa: E731
        conds = {
            key: rows(value) if torch.is_tensor(value) and len(value) == len(args["input"]) else value
            for key, value in args["c"].items()
        }
        out = apply_model(rows(args["input"]), rows(args["timestep"]), **conds).chunk(len(labels))
        return torch.cat([out[order.index(i)] for i in range(len(labels))])

    model = model.clone()
    model.set_model_unet_function_wrapper(send)
    return model


@EACH
def test_an_adapter_acts_in_its_range_by_formula(form):
    """The range ends between the noise levels of two steps."""
    family, model, start = begun(form)
    sampling = model.get_model_object("model_sampling")
    levels = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    settings = {"cfg": 1.0, "steps": 4, "start": start, "sigmas": levels}
    percent = next(i / 1000 for i in range(1000) if sampling.percent_to_sigma(i / 1000) < 0.65)
    found = sample(family, apply(form, model, end_percent=percent), **settings)
    late = sample(family, apply(form, model, start_percent=percent), **settings)

    def half(first):
        calls = []

        def send(apply_model, args):
            calls.append(1)
            if (len(calls) <= 2) == first:
                with added(form, model):
                    return apply_model(args["input"], args["timestep"], **args["c"])
            return apply_model(args["input"], args["timestep"], **args["c"])

        other = model.clone()
        other.set_model_unet_function_wrapper(send)
        return sample(family, other, **settings)

    assert nearly(found, half(True), 1e-5)
    assert nearly(late, half(False), 1e-5)
    assert not nearly(found, late, 1e-3)


@EACH
def test_a_run_repeats_itself_and_leaves_the_model_as_it_was(form):
    family, model, _ = begun(form)
    before, options = sample(family, model), str(model.model_options)
    steered = apply(form, model)
    once = sample(family, steered)
    assert torch.equal(sample(family, steered), once)
    assert torch.equal(sample(family, steered.clone().clone()), once)
    assert str(model.model_options) == options
    assert torch.equal(sample(family, model), before)
