"""The layer notation on both layouts, and its errors."""

from __future__ import annotations

import pytest
import torch
from reins.engine.sites import Site
from reins.engine.unet import find_sites
from reins.nodes.inputs.layers import parse_layers
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS, interval, pag, rescale
from reins.tests.helpers.tiny_models import nearly, sample


def names(text, model):
    return [(s.block[0], s.number, s.index) for s in parse_layers(text, find_sites(model, "attn1"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m0", [("m", 0, 0)]),
        ("d0", [("i", 1, 0)]),
        ("d0-1", [("i", 1, 0), ("i", 3, 0)]),
        ("d0-d1", [("i", 1, 0), ("i", 3, 0)]),
        ("u5, m0 ,d2", [("i", 5, 0), ("m", 0, 0), ("o", 5, 0)]),
        ("M0,m0", [("m", 0, 0)]),
        ("m0.0", [("m", 0, 0)]),
    ],
)
def test_names_on_the_sd15_layout(text, expected, sd15):
    assert names(text, sd15) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d0", [("i", 3, 0)]),
        ("d1", [("i", 5, 0), ("i", 5, 1)]),
        ("d1.1,u0.0", [("i", 5, 1), ("o", 0, 0)]),
        ("m0.0-1", [("m", 0, 0), ("m", 0, 1)]),
        ("u2-u3", [("o", 2, 0), ("o", 3, 0)]),
    ],
)
def test_names_on_the_sdxl_layout(text, expected, sdxl):
    assert names(text, sdxl) == expected


def test_all_names_every_layer(model):
    assert parse_layers("all", find_sites(model, "attn1")) == find_sites(model, "attn1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m7", ["m7", "m0.0-1", "d0", "u3"]),
        ("u2-u9", ["u4", "u2-u9", "u3"]),
        ("m0.5", ["m0.5", "m0.0-1"]),
        ("x1", ["'x1'", "m0"]),
        ("m", ["'m'"]),
        ("u3-u2", ["'u3-u2'"]),
        ("", ["empty"]),
        ("d0-m0", ["'d0-m0'"]),
    ],
)
def test_a_wrong_layer_is_named_with_those_there_are(text, words, sdxl):
    with pytest.raises(ValueError, match="layers") as error:
        pag(sdxl, layers=text)
    assert all(word in str(error.value) for word in words)
    pag(sdxl)


def test_a_model_without_a_unet_is_refused_before_sampling():
    with pytest.raises(ValueError, match=r"steers a UNet.*SD3"):
        METHODS["sag"](tiny_models.dit())


@pytest.mark.parametrize("name", ["pag", "seg"])
def test_a_layer_of_a_unet_on_a_transformer_is_answered_with_its_layers(name):
    with pytest.raises(ValueError, match=r"names a layer m0 that .* This model has: b0-1\. auto chooses for you"):
        METHODS[name](tiny_models.dit())


def test_a_unet_without_attention_in_the_middle_is_told_what_it_has():
    model = tiny_models.sd15(transformer_depth_middle=-1)
    with pytest.raises(ValueError, match=r"names a layer m0 .* This model has: d0, d1, d2, u0"):
        pag(model)
    with pytest.raises(ValueError, match=r"reads the self-attention of the UNet's middle block"):
        METHODS["sag"](model)
    assert sample(pag(model, layers="u0"), steps=2).isfinite().all()


@pytest.mark.parametrize("make", [tiny_models.dit, tiny_models.flux])
def test_methods_that_need_no_layer_steer_any_model(make):
    model = make()
    plain, alone = sample(model), sample(model, cfg=1.0)
    assert plain.isfinite().all()
    assert not nearly(sample(rescale(model)), plain, 1e-3)
    assert torch.equal(sample(interval(model, 0.6, 0.4)), alone)
    with tiny_models.forwards(model) as rows:
        assert not nearly(sample(rescale(interval(model, 0.3, 0.6)), steps=6), plain, 1e-3)
    assert {sum(rows)} != {12}


def test_a_site_is_a_plain_tuple():
    assert Site("attn1", "middle", 0, 0)[1:] == ("middle", 0, 0)
