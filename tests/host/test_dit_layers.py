"""The notation of layers on transformers, and what `auto` stands for there."""

from __future__ import annotations

import pytest
from comfy.model_patcher import ModelPatcher
from reins.engine.find import all_sites
from reins.nodes.inputs.auto_layers import chosen_sites
from reins.nodes.inputs.layers import parse_layers
from reins.tests.helpers import tiny_models
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, make
from reins.tests.helpers.transformer_terms import TERMS

# What the error for a wrong layer lists.
LISTED = {
    "sd3": "b0-2",
    "sd35m": "b0-1.0-1, b2",
    "flux": "d0-1, s0-1",
    "flux2": "d0-1, s0-1",
    "chroma": "d0-1, s0-1",
    "lumina": "n0, b0-2",
    "zimage": "n0, b0-2",
    "hidream": "d0, s0-1",
    "aura": "d0, s0-1",
    "qwen": "b0-2",
    "wan": "b0-2",
    "hunyuan_video": "d0, s0-1",
    "predict2": "b0-2",
    "ltxv": "b0-2",
}


def named(model: ModelPatcher, layers: str, kind: str = "attn1") -> list[tuple]:
    """Block, number and index of the attentions that a text names."""
    return [site[1:] for site in parse_layers(layers, all_sites(model, kind))]


def deep(family: str, **blocks: int) -> ModelPatcher:
    """A model with as many blocks as a released one, and next to no width."""
    return make(family, **blocks)


def test_ranges_name_blocks():
    model = deep("qwen", num_layers=12)
    assert named(model, "b7-9") == [("layer", number, 0) for number in (7, 8, 9)]
    assert named(model, "b7-b9, b1") == [("layer", number, 0) for number in (1, 7, 8, 9)]
    assert len(named(model, "all")) == 12


def test_both_stacks_of_flux_are_named_by_letters():
    model = MODELS["flux"]()
    assert named(model, "d0-1,s0") == [("double", 0, 0), ("double", 1, 0), ("single", 0, 0)]
    assert named(model, "S1, D1") == [("double", 1, 0), ("single", 1, 0)]


def test_refiners_of_noise_are_named_by_n_and_those_of_text_not_at_all():
    model = MODELS["lumina"]()
    assert named(model, "n0") == [("noise", 0, 0)]
    with pytest.raises(ValueError, match=r"names a layer c0 that the model does not have\. This model has: n0, b0-2\."):
        named(model, "c0")


def test_a_dot_names_one_attention_of_a_block():
    model = MODELS["sd35m"]()
    assert named(model, "b1") == [("layer", 1, 0), ("layer", 1, 1)]
    assert named(model, "b1.1") == [("layer", 1, 1)]
    with pytest.raises(ValueError, match=r"names a layer b2\.1 that the model does not have"):
        named(model, "b2.1")


def test_attentions_to_a_text_have_names_of_their_own_kind():
    assert named(MODELS["wan"](), "b1", "attn2") == [("layer", 1, 0)]
    assert all_sites(MODELS["flux"](), "attn2") == []


@pytest.mark.parametrize("family", GUIDED)
@pytest.mark.parametrize("layers", ["m0", "u0", "b99", "all, m0"])
def test_a_layer_of_a_unet_is_refused_with_those_of_the_model(family, layers):
    model = MODELS[family]()
    for name in TERMS:
        if name == "tpg" and family in ("sd3", "sd35m", "aura"):
            continue
        with pytest.raises(ValueError, match="that the model does not have") as error:
            TERMS[name](model, layers=layers)
        assert f"This model has: {LISTED[family]}. auto chooses for you." in str(error.value)


@pytest.mark.parametrize(
    "layers", ["", " , ", "b", "b1-", "7", "b2-1", "x1", "b1.", "b-1", "d0;s0", "d0.0-99999999999999999999"]
)
def test_what_is_no_layer_is_refused(layers):
    model = MODELS["flux"]()
    with pytest.raises(ValueError, match=r"This model has: d0-1, s0-1\. auto chooses for you\."):
        named(model, layers)


# Networks as deep as released ones, and the layers of auto for PAG, SEG, SLG and TPG.
METHODS = ("perturbed attention", "smoothed energy", "skipped layers", "shuffled tokens")
AUTO = [
    ("sd3", {"num_blocks": 24, "depth": 1}, ("b13", "b13", "b7-9", None)),
    ("sd3", {"num_blocks": 24, "depth": 1, "x_block_self_attn_layers": [*range(13)]}, ("b13", "b7-9", "b7-9", None)),
    ("sd3", {"num_blocks": 38, "depth": 1}, ("b20", "b20", "b11-14", None)),
    ("flux", {"depth": 3, "depth_single_blocks": 6}, ("s1", "s1", "s1", "s1")),
    ("lumina", {"n_layers": 6, "n_refiner_layers": 2}, ("b3", "b3", "b3", "b3")),
    ("wan", {"num_layers": 6}, ("b3", "b3", "b3", "b3")),
    ("ltxv", {"num_layers": 28}, ("b14", "b14", "b19", "b14")),
    ("hunyuan_video", {"depth": 20, "depth_single_blocks": 40}, ("s10", "s10", "d2", "s10")),
]


@pytest.mark.parametrize(("family", "settings", "expected"), AUTO, ids=[f"{name} {deep}" for name, deep, _ in AUTO])
def test_auto_is_the_published_layers_or_the_middle(family, settings, expected):
    model = deep(family, **settings)
    sites = all_sites(model, "attn1")
    for method, layers in zip(METHODS, expected, strict=True):
        if layers is not None:
            assert chosen_sites(model, "auto", sites, method) == tuple(parse_layers(layers, sites))


@pytest.mark.parametrize("family", GUIDED)
def test_auto_names_layers_of_every_family(family):
    model = MODELS[family]()
    sites = all_sites(model, "attn1")
    for method in METHODS:
        chosen = chosen_sites(model, "auto", sites, method)
        assert chosen and {*chosen} <= {*sites}
        assert not [site for site in chosen if site.block in ("context", "noise")]


def test_auto_joins_other_layers():
    model = MODELS["qwen"]()
    sites = all_sites(model, "attn1")
    assert chosen_sites(model, "auto, b0", sites, "perturbed attention") == tuple(parse_layers("b0-1", sites))


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_unet_names_its_layers_as_before(layout):
    model = getattr(tiny_models, layout)()
    sites = all_sites(model, "attn1")
    assert [site[1] for site in chosen_sites(model, "auto", sites, "perturbed attention")] == ["middle"] * len(
        parse_layers("m0", sites)
    )
    assert parse_layers("auto", sites) == parse_layers("m0", sites)
    with pytest.raises(ValueError, match=r"This model has: d0") as error:
        parse_layers("b0", sites)
    assert ", m0" in str(error.value) and ", u0" in str(error.value) and "-" not in str(error.value).split("d0")[0]


def test_a_network_that_is_not_known_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"PixArt \(PixArtMS\), and its attention is called without the host's options"
    ):
        TERMS["slg"](MODELS["pixart"](), layers="auto")
