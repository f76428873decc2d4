"""Real photographs through the host's Load Image: what the nodes make of them, against values worked out by numpy.

Sizes are odd. Files have alpha, a palette, one channel or 16 bits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageStat
from reins.engine.rows.chunk import Chunk
from reins.engine.rows.masks import mask_on_grid
from reins.models.guidance.image_loss import BLUR, edges, loss_gradient, low_frequencies
from reins.nodes.guidance import image_guidance
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.tests.helpers import controlnext, ip_adapter, prompt_diffusion, tiny_models
from reins.tests.helpers.photographs import (
    CUBIC,
    FOLDER,
    LANCZOS,
    bilinear,
    loaded,
    means,
    painted,
    photograph,
    resized,
    resized_in_bytes,
    values,
)
from reins.tests.helpers.tiny_models import sample
from scipy import ndimage

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
SIDE = 28  # of the tiny encoder's pictures
LEVEL = 1 / 255


WHOLE = Chunk(0, None, 0, False, None, (0,), None, None, None)  # sees the whole picture


def channels_first(array):
    return torch.from_numpy(array).movedim(-1, -3)[None]


# --- what the host loads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chelsea.jpg", "motorcycle.jpg", "camera.jpg", "coffee_canny.png", "chelsea_hed.jpg"])
def test_a_photograph_is_loaded_about_as_pillow_reads_it(name, tmp_path):
    image, mask = loaded(FOLDER / name, tmp_path)
    wanted = values(photograph(name))
    assert image.shape == (1, *wanted.shape)
    assert np.abs(image[0].double().numpy() - wanted).mean() < 2 * LEVEL  # decoders of JPEG differ by a little
    assert not mask.any()


def test_the_poses_of_a_motion_are_loaded_as_pictures_that_begin_with_that_of_the_photograph(tmp_path):
    image, _ = loaded(FOLDER / "astronaut_poses.webp", tmp_path)
    assert image.shape == (23, 512, 512, 3)
    assert np.abs(image[0].double().numpy() - values(photograph("astronaut_pose.png"))).max() < 2 * LEVEL
    assert (image[1:] != image[:-1]).flatten(1).any(1).all()


def forms(tmp_path):
    """What is loaded of files of every form, and the numbers that they hold."""
    cat = photograph("chelsea.jpg")
    with_alpha, grey = cat.copy(), cat.convert("L")
    with_alpha.putalpha(painted(cat.size))
    yield "three channels", loaded(cat, tmp_path), values(cat), 1e-6
    yield "alpha", loaded(with_alpha, tmp_path), values(cat), 1e-6
    yield "a palette", loaded(cat.quantize(64), tmp_path), values(cat.quantize(64)), 1e-6
    yield "one channel", loaded(grey, tmp_path), values(grey), LEVEL  # newer hosts load 255 as 255/256
    with Image.open(FOLDER / "motorcycle_disparity.png") as measured:
        deep = (np.asarray(measured).astype(np.int64) * 200).clip(0, 65535).astype(np.uint16)
    found = loaded(Image.fromarray(deep), tmp_path)
    if found[0].mean() < 0.99:  # ComfyUI 0.16.3 and older load 16 bits as white
        yield "16 bits", found, np.repeat(deep[..., None] / 65535, 3, -1), 1e-6


def test_files_of_every_form_are_loaded_as_three_channels_of_their_numbers(tmp_path):
    for form, (image, _), wanted, near in forms(tmp_path):
        assert image.shape == (1, *wanted.shape), form
        assert np.abs(image[0].double().numpy() - wanted).max() <= near, form


# --- IP-Adapter: what the image encoder is shown ----------------------------------------------------------------------


def fitted(array, fit, ground):
    """An array (h, w, c) as the encoder takes it, in levels of 1/255: resized by curves, the middle of it or all."""
    h, w, c = array.shape
    if fit == "pad":
        square = np.broadcast_to(np.asarray(ground, dtype=float), (max(h, w), max(h, w), c)).copy()
        top, left = (max(h, w) - h) // 2, (max(h, w) - w) // 2
        square[top : top + h, left : left + w] = array
        array, (h, w) = square, square.shape[:2]
    scale = SIDE / min(h, w)
    size = (SIDE, SIDE) if fit == "squash" else (round(scale * h), round(scale * w))
    found = resized(array, size, CUBIC)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return np.clip(255 * found[top : top + SIDE, left : left + SIDE], 0, 255)


def shown(monkeypatch, **inputs):
    """Pixels (h, w, 3), normalised, that IP-Adapter Encode shows the encoder."""
    seen, encoder = [], ip_adapter.encoder()
    forward = type(encoder.model).forward

    def note(self, pixel_values=None, **kwargs):
        seen.append(pixel_values)
        return forward(self, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(type(encoder.model), "forward", note)
    IPAdapterEncode.execute(ip_adapter.adapter(tiny_models.sd15()), encoder, **inputs)
    return seen[0][0].double().numpy().transpose(1, 2, 0)


def of_one_level(found, wanted):
    """Whether levels are those that were worked out, rounded: at a half, either neighbour may be right."""
    assert np.abs(found - wanted).max() < 0.5 + 2e-3
    return True


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(451, 300), (97, 143), (19, 13)], ids=str)
def test_the_encoder_is_shown_the_photograph_fitted(size, fit, tmp_path, monkeypatch):
    photo = photograph("chelsea.jpg", size)
    with_alpha = photo.copy()
    with_alpha.putalpha(painted(size))
    image, _ = loaded(with_alpha, tmp_path)
    found = (shown(monkeypatch, image=image, fit=fit) * STD + MEAN) * 255
    assert of_one_level(found, fitted(values(photo), fit, MEAN))


@pytest.mark.parametrize("form", range(5))
def test_the_encoder_is_shown_files_of_every_form(form, tmp_path, monkeypatch):
    of_forms = list(forms(tmp_path))
    if form >= len(of_forms):
        pytest.skip("this ComfyUI loads 16 bits as white")
    _, (image, _), wanted, near = of_forms[form]
    found = (shown(monkeypatch, image=image) * STD + MEAN) * 255
    assert np.abs(found - fitted(wanted, "crop", MEAN)).max() < 0.5 + 2e-3 + 2 * 255 * near


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_what_is_painted_away_is_the_mean_colour(fit, tmp_path, monkeypatch):
    photo = photograph("coffee.jpg", (301, 199))
    photo.putalpha(painted(photo.size))
    image, mask = loaded(photo, tmp_path)
    found = shown(monkeypatch, image=image, mask=mask, fit=fit)
    hidden = 1 - np.asarray(painted(photo.size)).astype(float)[..., None] / 255  # Load Image: 1 where it is transparent
    keeps = np.round(fitted(hidden, fit, [0.0])) / 255
    wanted = (np.round(fitted(values(photo), fit, MEAN)) / 255 - MEAN) / STD * keeps
    assert np.abs(found - wanted).max() < 0.03  # a level at a half
    assert np.abs(found - wanted).mean() < 1e-3


# --- hints: ControlNeXt and Prompt Diffusion -------------------------------------------------------------------------


def test_controlnext_stretches_a_measured_depth_to_the_picture(tmp_path, monkeypatch, sd15):
    image, _ = loaded(FOLDER / "motorcycle_depth.png", tmp_path)
    made, seen = controlnext.control(sd15), []
    prepare = made.network.model.prepare
    monkeypatch.setattr(made.network.model, "prepare", lambda pictures, padding: (
        seen.append(pictures), prepare(pictures, padding))[1])  # fmt: skip
    steered = controlnext.ControlNeXtApply.execute(sd15, made, image).result[0]
    sample(steered, size=(15, 21), steps=1)
    found = seen[0][0].double().numpy().transpose(1, 2, 0)
    wanted = resized_in_bytes(values(photograph("motorcycle_depth.png")), (120, 168), LANCZOS)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1.5 * LEVEL  # at a half, either level may be right
    assert np.abs(found - wanted).mean() < LEVEL / 50


def cropped(array, size):
    """The middle of an array (h, w, c) in the shape of a size, by its nearest pixels, as the host resizes hints."""
    h, w, _ = array.shape
    wanted = size[1] / size[0]
    x = round((w - w * wanted / (w / h)) / 2) if w / h > wanted else 0
    y = round((h - h * (w / h) / wanted) / 2) if w / h < wanted else 0
    array = array[y : h - y, x : w - x]
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, array.shape[:2], strict=True)
    )  # fmt: skip
    return array[rows][:, columns]


def nine_channels(control, model, image, size):
    seen = []
    hook = control.control_model.input_hint_block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        sample(model, size, steps=1, **prompt_diffusion.apply(control_net=control, image=image))
    finally:
        hook.remove()
    return seen[0][0].double().numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(16, 26), (21, 15)], ids=str)
def test_prompt_diffusion_is_shown_photographs_and_their_maps_about_the_middle(size, tmp_path, sd15):
    names = ("chelsea.jpg", "motorcycle.jpg", "motorcycle_depth.png")
    query, source, target = (loaded(photograph(name), tmp_path)[0] for name in names)
    control = prompt_diffusion.example(prompt_diffusion.loaded(sd15), source=source, target=target)
    found = nine_channels(control, sd15, query, size)
    pixels = (8 * size[0], 8 * size[1])
    wanted = np.concatenate([cropped(2 * values(photograph(name)) - 1, pixels) for name in names], -1)
    assert np.abs(found - wanted).max() < 1e-6


def test_a_smaller_map_is_stretched_to_its_photograph(tmp_path, sd15):
    source = loaded(photograph("motorcycle.jpg"), tmp_path)[0]
    small = photograph("motorcycle_depth.png", (297, 231))
    pair = prompt_diffusion.example(
        prompt_diffusion.loaded(sd15), source=source, target=loaded(small, tmp_path)[0]
    ).pair
    wanted = 2 * resized_in_bytes(values(small), (400, 593), LANCZOS) - 1
    assert pair.shape == (1, 6, 400, 593)
    assert (pair[:, 3:] - channels_first(wanted)).abs().max() < 3 * LEVEL
    assert (pair[:, 3:] - channels_first(wanted)).abs().mean() < LEVEL / 25


# --- Image Guidance: colours and their statistics --------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 20), (17, 9)], ids=str)
def test_image_guidance_compares_with_the_means_of_the_photograph(size, tmp_path, monkeypatch, sd15):
    seen = []
    monkeypatch.setattr(image_guidance, "loss_gradient", lambda x, target, loss: (seen.append(target), x * 0)[1])
    image, _ = loaded(photograph("coffee.jpg", (301, 199)), tmp_path)
    sample(ImageGuidance.execute(sd15, "edges", 1.0, 0.0, 1.0, image=image).result[0], size=size, steps=1)
    wanted = means(2 * values(photograph("coffee.jpg", (301, 199))) - 1, size)
    assert (seen[0].double() - channels_first(wanted)).abs().max() < 1e-5


CAT, COFFEE = (photograph(name, (151, 101)) for name in ("chelsea.jpg", "coffee.jpg"))


def test_a_full_step_gives_a_photograph_the_colours_of_another(sd15):
    x, target = channels_first(values(CAT)), channels_first(values(COFFEE))
    moved = (x - loss_gradient(x, target, "colour histogram"))[0].numpy()
    level = 255 * moved
    assert np.allclose(level.mean((1, 2)), ImageStat.Stat(COFFEE).mean)
    assert np.allclose(level.std((1, 2)), ImageStat.Stat(COFFEE).stddev)
    planes = zip(*(values(image).transpose(2, 0, 1) for image in (CAT, COFFEE)), moved, strict=True)
    for before, wanted, after in planes:
        counts = [np.histogram(255 * found, 256, (-0.5, 255.5))[0] for found in (after, wanted)]
        assert (counts[0] == counts[1]).all()
        by_value = np.argsort(before, axis=None, kind="stable")
        brighter = np.diff(before.ravel()[by_value]) > 0
        assert (np.diff(after.ravel()[by_value])[brighter] > -1e-9).all()  # what was brighter stays so


def test_the_losses_of_two_photographs_are_those_that_scipy_and_numpy_give():
    x, target = values(CAT), values(COFFEE)
    sigma = BLUR * 101
    reach = (int(6 * sigma + 1) | 1) // 2
    blurred = ndimage.gaussian_filter(x - target, (sigma, sigma, 0), mode="mirror", radius=(reach, reach, 0))
    found = low_frequencies(channels_first(x), channels_first(target))
    assert np.isclose(float(found), 0.5 * (blurred**2).sum(), rtol=1e-4)

    def steep(array):
        padded = np.pad(array, ((1, 1), (1, 1), (0, 0)), mode="edge")
        down, across = padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]
        return np.sqrt((down**2 + across**2 + 1e-8) / 8)

    found = edges(channels_first(x), channels_first(target))
    assert np.isclose(float(found), 0.5 * ((steep(x) - steep(target)) ** 2).sum(), rtol=1e-4)


# --- painted masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(13, 19), (64, 64), (7, 3)], ids=str)
def test_a_painted_mask_is_read_at_the_middle_of_each_cell(grid, tmp_path):
    photo = photograph("chelsea.jpg")
    photo.putalpha(painted(photo.size))
    _, mask = loaded(photo, tmp_path)
    wanted = bilinear(1 - np.asarray(painted(photo.size)).astype(float) / 255, grid)
    found = mask_on_grid(mask, grid, [WHOLE])[0, 0, :, 0].double().numpy().reshape(grid)
    assert np.abs(found - wanted).max() < 1e-4


def test_the_mask_of_a_photograph_without_alpha_is_as_good_as_none(tmp_path, sd15, caplog):
    """ComfyUI 0.30 and newer give an opaque lossless WebP the mask 1 - 255/256, and others 0."""
    for ending, save in (("png", {}), ("webp", {"lossless": True}), ("jpg", {})):
        _, mask = loaded(photograph("coffee.jpg", (61, 41)), tmp_path, ending, **save)
        caplog.clear()
        steered = ip_adapter.apply(sd15, mask=mask)
        assert torch.equal(sample(steered, steps=1), sample(sd15, steps=1)), ending
        assert caplog.text.count("0 everywhere") == 1, ending
