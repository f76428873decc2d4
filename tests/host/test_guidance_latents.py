"""Which latents the methods for pictures take, on models of pictures, videos and sound, and what they say of others."""

from __future__ import annotations

import comfy.latent_formats
import comfy.samplers
import pytest
import torch
from reins.models.guidance.frequency_bands import weight_bands
from reins.models.guidance.windows import windows
from reins.nodes.guidance.frequency_decoupled import FrequencyDecoupledGuidance
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.guidance.sliding_window import SlidingWindowGuidance
from reins.tests.helpers import tiny_models
from reins.tests.helpers.flows import CFG, both, guided, points_of
from reins.tests.helpers.methods import fdg, swg
from reins.tests.helpers.predictions import denoise
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import MODELS, VIDEO, latent, noise_like, sample, text

PICTURE = torch.rand((1, 64, 96, 3), generator=torch.Generator().manual_seed(3))
MANY_FRAMES = [family for family, frames in VIDEO.items() if frames > 1]
CLOSE = 1e-4


def by_picture(model, start=0.0, scale=1.0, **reference):
    return ImageGuidance.execute(model, "edges", scale, start, 1.0, **reference or {"image": PICTURE}).result[0]


FOR_PICTURES = {"Sliding Window Guidance": swg, "Image Guidance": by_picture}
FOR_ALL = {**FOR_PICTURES, "Frequency-Decoupled Guidance": fdg}


# --- refused ---


@pytest.mark.parametrize("name", FOR_PICTURES)
@pytest.mark.parametrize("family", MANY_FRAMES)
def test_a_video_is_refused_before_the_network_is_called(family, name):
    """Also if the method is to act in the second half of the run only."""
    model = MODELS[family]()
    steered = FOR_PICTURES[name](model, start=0.5)
    with tiny_models.forwards(model) as rows, pytest.raises(ValueError) as caught:
        sample(family, steered)
    shape = tuple(latent(family).shape)
    assert str(caught.value) == (
        f"{name} takes latents of pictures, but this one is a video with 3 frames in the latent, {shape}. Make a "
        f"latent of one frame, or remove the node."
    )
    assert rows == []
    assert torch.equal(sample(family, model, frames=1), sample(family, MODELS[family](), frames=1))


@pytest.mark.parametrize("name", FOR_ALL)
def test_a_model_whose_latents_have_no_rows_is_refused_at_the_node(name, sd15, monkeypatch):
    monkeypatch.setattr(sd15.model, "latent_format", comfy.latent_formats.StableAudio1())
    with pytest.raises(ValueError) as caught:
        FOR_ALL[name](sd15)
    assert str(caught.value) == (
        f"{name} takes latents with rows and columns, but those of this model (StableAudio1) have one length alone. "
        f"Remove the node from this model."
    )


@pytest.mark.parametrize("name", FOR_ALL)
def test_a_latent_without_rows_is_refused_before_the_network_is_called(name, sd15):
    """As newer hosts pack a video and its sound into one row of numbers."""
    steered, packed = FOR_ALL[name](sd15), torch.zeros((1, 1, 400))
    guider = comfy.samplers.CFGGuider(steered)
    guider.inner_set_conds({"positive": tiny_models.text(1), "negative": tiny_models.text(2)})
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([10.0, 5.0, 0.0])
    with tiny_models.forwards(sd15) as rows, pytest.raises(ValueError) as caught:
        guider.sample(packed, packed, sampler, sigmas, disable_pbar=True)
    assert str(caught.value) == (
        f"{name} takes latents with rows and columns, but this one is (1, 1, 400). Remove the node from this model."
    )
    assert rows == []


def test_off_nodes_take_every_model(sd15, monkeypatch):
    monkeypatch.setattr(sd15.model, "latent_format", comfy.latent_formats.StableAudio1())
    assert SlidingWindowGuidance.execute(sd15, 0.0, 512, 128, 0.0, 1.0).result[0] is sd15
    assert FrequencyDecoupledGuidance.execute(sd15, 1.0, 1.0, 2, 0.0, 1.0).result[0] is sd15


# --- windows ---


@pytest.mark.parametrize("family", ["qwen", "predict2", "wan"])
@pytest.mark.parametrize("batch", [1, 2])
def test_swg_cuts_masks_and_areas_of_a_frame_as_the_host_places_them(batch, family):
    model = MODELS[family]()
    ((x, sigma),) = points_of(family, model, batch=batch, h=12, w=12, frames=1)
    mask = torch.rand((1, 12, 12), generator=torch.Generator().manual_seed(1))
    placed = [{"area": (10, 6, 2, 4), "strength": 0.6}, {"mask": mask, "mask_strength": 0.8}, {}]
    texts = [text(seed, 5, family)[0] for seed in (1, 3, 4)]
    positive = [[words, {**options, **place}] for (words, options), place in zip(texts, placed, strict=True)]
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for words, place in zip(texts, placed, strict=True):
        h, w, top, left = place.get("area", (12, 12, 0, 0))
        resolved = {**place, "mask": mask.unsqueeze(1)} if "mask" in place else place
        cond = {"model_conds": {}, "uuid": None, **resolved}
        weights = torch.zeros_like(x)
        of_host = comfy.samplers.get_area_and_mult(cond, x, torch.tensor([sigma])).mult
        weights[..., top : top + h, left : left + w] = of_host
        for wh, ww, wtop, wleft in windows((h, w), 8, 4):  # a prompt for an area has windows of that area
            part = (..., slice(top + wtop, top + wtop + wh), slice(left + wleft, left + wleft + ww))
            total[part] += weights[part] * guided(family, model, [(x[part].clone(), sigma)], 1.0, positive=[words])[0]
            count[part] += weights[part]
    plain, seen = (guided(family, model, [(x, sigma)], cfg, positive=positive)[0] for cfg in (CFG, 1.0))
    (found,) = guided(family, swg(model, 2.0, 64, 32), [(x, sigma)], positive=positive)
    expected = plain + 2.0 * (seen - total / count)
    assert nearly(found, expected, CLOSE) and not nearly(plain, expected, 1e-2)


def test_each_window_sees_the_whole_of_a_reference_latent():
    model = MODELS["flux"]()
    ((x, sigma),) = points_of("flux", model, w=14)
    positive = text(1, 5, "flux", reference_latents=[noise_like(latent("flux", w=14), 5)])
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for h, w, top, left in windows((8, 14), 6, 2):
        part = (..., slice(top, top + h), slice(left, left + w))
        total[part] += guided("flux", model, [(x[part].clone(), sigma)], 1.0, positive=positive)[0]
        count[part] += 1
    seen, without = (guided("flux", model, [(x, sigma)], 1.0, **given)[0] for given in ({"positive": positive}, {}))
    (found,) = guided("flux", swg(model, 1.5, 48, 16), [(x, sigma)], 1.0, positive=positive)
    assert nearly(found, seen + 1.5 * (seen - total / count), CLOSE) and not nearly(seen, without, 1e-3)


PIXELS = {"SD15": 8, "Flux": 8, "Wan21": 8, "Wan22": 16, "HunyuanImage21": 32, "LTXV": 32, "Flux2": 16, "SC_B": 4}


@pytest.mark.parametrize("name", PIXELS)
def test_windows_are_as_long_in_pixels_as_tile_says(name, sd15, monkeypatch):
    """A cell of the latent is as many pixels as the model's VAE makes of it."""
    if not hasattr(comfy.latent_formats, name):
        pytest.skip(f"this ComfyUI has no {name}")
    monkeypatch.setattr(sd15.model, "latent_format", getattr(comfy.latent_formats, name)())
    pixels = PIXELS[name]
    with tiny_models.forwards(sd15) as rows:
        found = denoise(swg(sd15, 2.0, 8 * pixels, 4 * pixels), size=(12, 12))
    assert sorted(rows) == [2, 4]
    monkeypatch.undo()
    assert torch.equal(found, denoise(swg(sd15, 2.0, 64, 32), size=(12, 12)))
    monkeypatch.setattr(sd15.model, "latent_format", getattr(comfy.latent_formats, name)())
    with pytest.raises(ValueError, match=f"tile should be at least {pixels} pixels.*but is {pixels - 1}"):
        swg(sd15, 2.0, pixels - 1, 0)


# --- references of Image Guidance ---


def test_a_reference_for_a_video_model_may_lack_the_time_axis():
    """The host itself takes such a latent for a model of videos."""
    model, wanted = MODELS["wan"](), noise_like(latent("wan", frames=1), 9)
    points = points_of("wan", model, frames=1)
    nodes = [by_picture(model, latent={"samples": samples}) for samples in (wanted, wanted[:, :, 0])]
    found = [guided("wan", node, points)[0] for node in nodes]
    ((plain, _),) = both("wan", model, points)
    assert torch.equal(*found) and not nearly(found[0], plain, 1e-2)


@pytest.mark.parametrize(("family", "frames"), [("qwen", 2), ("wan", 3), ("sd3", 1)])
def test_a_reference_that_is_a_video_is_refused(family, frames):
    samples = torch.zeros((1, 16, frames, 8, 8))
    with pytest.raises(ValueError, match=rf"latent should be the latent of pictures.*\(1, 16, {frames}, 8, 8\)"):
        by_picture(MODELS[family](), latent={"samples": samples})


def test_colours_for_another_number_of_channels_are_refused(sd15, monkeypatch):
    """The host rearranges the cells of Flux2 before it gives them colours."""
    fmt = comfy.latent_formats.SD15()
    fmt.latent_channels = 16
    monkeypatch.setattr(sd15.model, "latent_format", fmt)
    with pytest.raises(ValueError) as caught:
        by_picture(sd15)
    assert str(caught.value) == (
        "The colours of SD15 latents are known for 4 channels, but they have 16, so image cannot be compared with "
        "them. Connect VAE Encode to latent instead."
    )


# --- bands ---


def test_bands_of_a_video_are_those_of_its_frames():
    x = torch.randn((2, 4, 3, 9, 14), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = weight_bands(x, 0.5, 3.0, 3)
    for i in range(3):
        assert torch.equal(found[:, :, i], weight_bands(x[:, :, i].contiguous(), 0.5, 3.0, 3))
