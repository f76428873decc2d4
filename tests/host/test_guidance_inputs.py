"""Wrong inputs of the guidance family: a ValueError that names what was expected and found, and nothing is patched."""

from __future__ import annotations

import comfy.latent_formats
import pytest
import torch
from comfy.model_base import ModelType
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.guidance.normalized_attention import NormalizedAttentionGuidance
from reins.nodes.guidance.sliding_window import SlidingWindowGuidance
from reins.nodes.guidance.weak_model import WeakModelGuidance
from reins.tests.helpers import tiny_models, tiny_transformers
from reins.tests.helpers.methods import apg, cfg_zero, fdg, image, nag, pladis, sag, swg, tpg, weak
from reins.tests.helpers.predictions import denoise
from reins.tests.helpers.tiny_models import noise, text

NAN = float("nan")
PICTURE = torch.rand((1, 32, 32, 3), generator=torch.Generator().manual_seed(0))


def wants(message, act, model):
    """`act` refuses in these words, and leaves the model and its next prompt as they were."""
    options, before = str(model.model_options), denoise(model, size=(8, 8))
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert str(model.model_options) == options and not model.patches
    assert torch.equal(denoise(model, size=(8, 8)), before)


@pytest.mark.parametrize("other", [tiny_models.dit, tiny_models.flux])
def test_sag_refuses_a_network_that_is_no_unet(other):
    model = other()
    options = str(model.model_options)
    with pytest.raises(ValueError, match=r"steers a UNet .*but the model is (SD3|Flux)"):
        sag(model)
    assert str(model.model_options) == options


@pytest.mark.parametrize("method", [tpg, nag, pladis])
def test_what_acts_inside_attention_refuses_a_network_whose_attention_is_out_of_reach(method):
    model = tiny_transformers.MODELS["pixart"]()
    options = str(model.model_options)
    with pytest.raises(ValueError, match=r"steers a UNet .* or a diffusion transformer .*without the host's options"):
        method(model)
    assert str(model.model_options) == options


@pytest.mark.parametrize("method", [swg, apg, fdg, cfg_zero, lambda m: weak(m, tiny_models.dit())])
def test_what_reads_predictions_takes_any_network(method):
    model = tiny_models.dit()
    start, (positive,), (negative,) = noise(12, 12).repeat(1, 4, 1, 1), text(1), text(2)
    start = start[:, : model.model.diffusion_model.in_channels]

    def run(model):
        return tiny_models.sample(model, (12, 12), steps=2, start=start, positive=[positive], negative=[negative])

    found = run(method(model))
    assert found.isfinite().all()
    assert torch.equal(run(model), run(model))


@pytest.mark.parametrize("layers", ["m1", "u9", "x0", "", "m0,d7"])
def test_tpg_names_a_wrong_layer_and_lists_those_there_are(layers, sd15):
    wants("layer", lambda: tpg(sd15, layers=layers), sd15)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 64), (64, 128), (16, 16)])
def test_windows_that_do_not_move_on_are_refused(tile, overlap, sd15):
    wants(f"tile is {tile} and overlap is {overlap}", lambda: swg(sd15, tile=tile, overlap=overlap), sd15)


def test_windows_of_fewer_pixels_than_a_cell_still_move_on(sd15):
    for tile, overlap in ((16, 15), (17, 9), (20, 19)):
        found = SlidingWindowGuidance.execute(sd15, 2.0, tile, overlap, 0.0, 1.0).result[0]
        assert found is not sd15


WRONG_NEGATIVES = {
    "no entry": ([], "negative should be a prompt"),
    "not a list": (None, "negative should be a prompt"),
    "another width": ([[torch.zeros(1, 5, 12), {}]], r"16 numbers per token.*\(1, 5, 12\)"),
    "two dimensions": ([[torch.zeros(5, 16), {}]], r"16 numbers per token.*\(5, 16\)"),
    "not a tensor": ([["words", {}]], "16 numbers per token.*str"),
    "NaN": ([[torch.full((1, 5, 16), NAN), {}]], "negative should hold finite numbers"),
    "no tokens": ([[torch.zeros(1, 0, 16), {}]], "negative"),
    "a mask of four dimensions": ([[torch.zeros(1, 5, 16), {"mask": torch.ones(1, 1, 8, 8)}]], "mask of negative"),
    "a mask with NaN": ([[torch.zeros(1, 5, 16), {"mask": torch.full((1, 8, 8), NAN)}]], "mask of negative"),
}


@pytest.mark.parametrize("name", WRONG_NEGATIVES)
@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_nag_names_what_is_wrong_with_its_negative(name, scale, sd15):
    negative, message = WRONG_NEGATIVES[name]
    node = NormalizedAttentionGuidance
    wants(message, lambda: node.execute(sd15, negative, scale, 2.5, 0.5, 0.0, 1.0), sd15)


def weak_by(other, scale=2.0):
    return lambda model: WeakModelGuidance.execute(model, other, scale, 0.0, 1.0)


WRONG_WEAK = {
    "latents": (lambda: tiny_models.dit(), r"same latents as model \(SD15\), but takes SD3"),
    "text width": (lambda: tiny_models.sd15(context_dim=24), "text of 16 numbers per token.*24"),
    "flow": (lambda: tiny_models.sd15(kind=ModelType.FLOW), "flow model"),
}


@pytest.mark.parametrize("name", WRONG_WEAK)
@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_a_weak_model_that_does_not_fit_is_refused(name, scale, sd15):
    make, message = WRONG_WEAK[name]
    other = make()
    wants(message, lambda: weak_by(other, scale)(sd15), sd15)


def test_a_weak_model_that_takes_more_channels_is_refused(sd15):
    """As an inpainting model does, which is given a picture and a mask beside the noise."""
    other = tiny_models.sd15(in_channels=9)
    wants("channels", lambda: weak_by(other)(sd15), sd15)


def test_a_weak_transformer_that_reads_another_text_is_refused():
    """Flux, Lumina2 and others share a latent, but not their texts."""
    model = tiny_transformers.MODELS["flux"]()
    for family, changes in (("lumina", {"cap_feat_dim": 24}), ("flux", {"context_in_dim": 24})):
        other = tiny_transformers.MODELS[family](**changes)
        with pytest.raises(ValueError, match=r"weak_model should read a text of 16 numbers per token.*but reads 24"):
            weak(model, other)


def test_a_weak_model_of_another_depth_or_width_is_welcome(sd15):
    other = tiny_models.sd15(num_heads=2, channel_mult=[1, 1, 1], dtype=torch.float64)
    expected = denoise(sd15) + 2.0 * (denoise(sd15, 1.0) - denoise(other, 1.0))
    torch.testing.assert_close(denoise(weak(sd15, other)), expected, rtol=1e-4, atol=1e-4)


def guided(model, **inputs):
    return ImageGuidance.execute(model, "low frequencies", 1.0, 0.0, 1.0, **inputs).result[0]


WRONG_PICTURES = {
    "neither": ({}, "neither"),
    "both": ({"image": PICTURE, "latent": {"samples": noise()}}, "both"),
    "channels": ({"latent": {"samples": torch.zeros(1, 16, 8, 8)}}, "4 channels.*16"),
    "NaN in the image": ({"image": PICTURE * NAN}, "image should hold"),
    "NaN in the latent": ({"latent": {"samples": noise() * NAN}}, "latent should hold"),
    "no picture": ({"image": PICTURE[:0]}, "image should be pictures"),
    "a mask for an image": ({"image": PICTURE[..., 0]}, "image should be pictures"),
    "one channel": ({"image": PICTURE[..., :1]}, "image should be pictures"),
    "a latent without samples": ({"latent": {}}, "latent should be the latent of pictures"),
    "a video latent": ({"latent": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "latent should be the latent of pictures"),
    "no cells": ({"latent": {"samples": torch.zeros(1, 4, 0, 8)}}, "latent should be the latent of pictures"),
}


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_image_guidance_names_what_is_wrong_with_its_picture(name, sd15):
    inputs, message = WRONG_PICTURES[name]
    wants(message, lambda: guided(sd15, **inputs), sd15)


def test_a_latent_of_other_channels_is_refused_also_where_each_has_a_mean_of_its_own(sdxl, monkeypatch):
    monkeypatch.setattr(sdxl.model, "latent_format", comfy.latent_formats.SDXL_Playground_2_5())
    with pytest.raises(ValueError, match="channels"):
        guided(sdxl, latent={"samples": torch.zeros(1, 16, 8, 8)})


def test_an_image_for_latents_without_known_colours_is_refused(sd15, monkeypatch):
    unknown = comfy.latent_formats.SD15()
    unknown.latent_rgb_factors = None
    monkeypatch.setattr(sd15.model, "latent_format", unknown)
    wants("SD15 latents are not known", lambda: guided(sd15, image=PICTURE), sd15)


def test_pictures_of_any_size_are_taken(sd15):
    for size in ((1, 1), (3, 200), (64, 5)):
        picture = torch.rand((2, *size, 3), generator=torch.Generator().manual_seed(1))
        assert denoise(guided(sd15, image=picture)).isfinite().all()
        assert denoise(image(sd15, loss="edges"), size=size if min(size) > 3 else (8, 8)).isfinite().all()
