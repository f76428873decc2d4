"""Asyrp's step in the form of samplers against the paper's own, the numbers round it, and files by their tensors."""

from __future__ import annotations

import re

import pytest
import torch
from reins.models.h_space.files import BlockFile, Directions, parse_h_space
from reins.models.h_space.steps import (
    Levels,
    at_sigma,
    edited_step,
    effective_factor,
    following_level,
    levels_of_step,
    principal_direction,
    scaled_to,
)

KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)  # alpha-bar of the paper's models


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigma_of(kept):
    return ((1 - kept) / kept) ** 0.5


def papers_step(x, eps, edited_eps, kept, following, eta, noise):
    """Equations 5 to 7, in the paper's own x; `kept` and `following` are alpha-bar of this and the next step."""
    c = eta * ((1 - following) / (1 - kept)) ** 0.5 * (1 - kept / following) ** 0.5
    predicted = (x - (1 - kept) ** 0.5 * edited_eps) / kept**0.5
    return following**0.5 * predicted + (1 - following - c**2) ** 0.5 * eps + c * noise


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("step", "next_step"), [(999, 888), (513, 400), (30, 0), (0, None)])
def test_the_step_is_the_papers(step, next_step, eta):
    x, eps, edited_eps, noise = (drawn(2, 3, 4, 4, seed=seed) for seed in range(4))
    kept = float(KEPT[step])
    following = 1.0 if next_step is None else float(KEPT[next_step])
    expected = papers_step(x, eps, edited_eps, kept, following, eta, noise) / following**0.5
    scaled, sigma = x / kept**0.5, sigma_of(kept)
    levels = levels_of_step(sigma, sigma_of(following), eta, is_flow=False)
    found = edited_step(scaled, scaled - sigma * eps, scaled - sigma * edited_eps, sigma, levels, is_flow=False)
    assert torch.allclose(found + levels.up * noise, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("sigma", "following"), [(1.0, 0.8), (0.5, 0.3), (0.3, 0.0)])
def test_of_a_flow_the_edited_picture_is_mixed_with_the_plain_noise(sigma, following, eta):
    """A latent is (1 - sigma) picture + sigma noise; what noise is drawn anew keeps the share of both."""
    x, plain, edited = (drawn(2, 3, 4, 4, seed=seed) for seed in range(3))
    noise = (x - (1 - sigma) * plain) / sigma
    levels = levels_of_step(sigma, following, eta, is_flow=True)
    assert (levels.up == 0) == (eta == 0 or following == 0)
    down = following + (following**2 / sigma - following) * eta
    expected = (1 - following) / (1 - down) * ((1 - down) * edited + down * noise)
    assert torch.allclose(edited_step(x, plain, edited, sigma, levels, is_flow=True), expected)
    assert levels.up**2 + (levels.kept * levels.down) ** 2 == pytest.approx(following**2)


@pytest.mark.parametrize("is_flow", [False, True])
@pytest.mark.parametrize(("sigma", "following"), [(0.9, 0.6), (0.6, 0.55), (0.55, 0.0), (0.6, 0.9)])
def test_a_plain_step_to_the_effective_picture_is_that_step(sigma, following, is_flow):
    """Rising levels too: samplers that noise a picture again step so."""
    x, plain, edited = (drawn(2, 3, 4, 4, seed=seed) for seed in range(3))
    effective = plain + effective_factor(sigma, following, is_flow) * (edited - plain)
    euler = x + (x - effective) / sigma * (following - sigma)
    assert torch.allclose(euler, edited_step(x, plain, edited, sigma, Levels(following), is_flow))
    if following == 0:
        assert effective_factor(sigma, following, is_flow) == 1.0 and torch.allclose(euler, edited)


def test_the_following_level_is_that_of_the_sampler():
    sigmas = (10.0, 4.0, 1.0, 0.0)
    assert [following_level(sigma, sigmas) for sigma in sigmas[:-1]] == [4.0, 1.0, 0.0]
    assert following_level(4.0003, sigmas) == 1.0  # as rounded by a wrapper
    assert following_level(6.0, sigmas) == 4.0  # between two
    assert following_level(0.5, sigmas) == 0.0
    assert following_level(0.5, (10.0, 4.0, 1.0)) is None
    assert following_level(3.0, ()) is None
    assert following_level(1.0, (0.1, 1.0, 10.0)) == 10.0  # upwards


def test_a_level_that_is_there_twice_is_no_step():
    assert following_level(4.0, (10.0, 4.0, 4.0, 1.0, 0.0)) == 1.0
    assert following_level(4.0, (4.0, 4.0)) is None


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 5), (1, 1)], ids=["whole", "pooled"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_relative_direction_has_the_length_of_each_h(rows, size):
    direction, h = 7 * drawn(rows, 6, *size), drawn(2, 6, 4, 5, seed=1) * torch.tensor([1.0, 5.0])[:, None, None, None]
    found = scaled_to(direction, h).expand_as(h)
    assert torch.allclose(found.flatten(1).norm(dim=1), h.flatten(1).norm(dim=1))
    assert torch.allclose(
        torch.cosine_similarity(found.flatten(1), direction.expand_as(h).flatten(1)), torch.ones(2).double()
    )


def test_a_direction_of_zeros_stays_so():
    assert torch.equal(scaled_to(torch.zeros(1, 6, 4, 5), torch.ones(2, 6, 4, 5)), torch.zeros(2, 6, 4, 5))


def test_between_two_noise_levels_directions_are_mixed_in_log_sigma():
    directions, sigmas = drawn(3, 2, 1, 1), (16.0, 4.0, 1.0)
    high, middle, low = directions
    for sigma, expected in (
        (8.0, (high + middle) / 2), (2.0, (middle + low) / 2), (4.0, middle), (16.0, high), (1.0, low), (99.0, high),
        (0.01, low), (2**0.5, 0.25 * middle + 0.75 * low),
    ):  # fmt: skip
        assert torch.allclose(at_sigma(directions, sigmas, sigma), expected), sigma
    assert torch.equal(at_sigma(directions, (16.0, 4.0, 0.0), 1.0), middle)  # there is no log of 0
    assert torch.equal(at_sigma(directions[:1], (2.0,), 2.5), at_sigma(directions[:1], (2.0,), 0.5))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_principal_direction_is_one_deviation_along_a_singular_vector(number):
    """The length is the deviation of the samples' places along it."""
    h = drawn(5, 2, 3, 4, 4) + 10
    rows = h.flatten(1) - h.flatten(1).mean(0)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    found = principal_direction(h, number).flatten()
    along = torch.nn.functional.normalize(found, dim=0)
    assert torch.dot(along, vectors[number - 1]).abs() == pytest.approx(1)
    assert found.norm() == pytest.approx((rows @ vectors[number - 1]).std()) == values[number - 1] / 2
    assert (rows[0] @ found) > 0  # the sign does not hang on the machine
    assert principal_direction(h.float(), number).shape == h.shape[1:]


# --- files by their tensors ------------------------------------------------------------------------------------------


def weights(layout, c=64, time=128):
    shapes = {
        "ddpm": {"conv1": (c, c, 1, 1), "temb_proj": (c, time), "norm2": (c,), "conv2": (c, c, 1, 1)},
        "iddpm": {
            "in_layers.0": (c,), "in_layers.2": (c, c, 1, 1), "emb_layers.1": (c, time), "out_layers.0": (c,),
            "out_layers.3": (c, c, 1, 1),
        },
    }[layout]  # fmt: skip
    found = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    return found | {f"{name}.bias": torch.zeros(c) for name in shapes}


@pytest.mark.parametrize("prefix", ["", "0."])
@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
def test_a_delta_block_is_known_by_its_tensors(layout, prefix):
    content = {f"{prefix}{key}": value for key, value in weights(layout).items()}
    beside = {"optimizer.state.0.step": torch.ones(1), "scheduler.last_epoch": torch.ones(1)}
    found = parse_h_space({**content, **beside}, "file")
    assert isinstance(found, BlockFile) and (found.channels, found.time) == (64, 128)
    assert set(found.weights) == set(weights(layout)) == set(found.make(64, 128, torch.nn).state_dict())
    without = {key: value for key, value in content.items() if "emb" not in key}
    found = parse_h_space(without, "file")
    assert found.time is None and set(found.weights) == set(found.make(64, None, torch.nn).state_dict())


def test_the_noise_level_of_a_timestep_is_the_authors():
    """Betas from 0.0001 to 0.02 in a thousand equal steps; the direction named 0 is the mean of the others."""
    rows = {str(step): drawn(1, 6, 4, 4, seed=step).float() for step in (0, 999, 500, 250)}
    found = parse_h_space(rows, "file")
    assert found.sigmas == pytest.approx([float(sigma_of(KEPT[step])) for step in (999, 500, 250)])
    assert found.sigmas[0] == pytest.approx(157.41, rel=1e-4)  # of the stored trajectory
    assert torch.equal(found.dh, torch.cat([rows[step] for step in ("999", "500", "250")]))
    alone = parse_h_space({"0": rows["0"][0]}, "file")
    assert torch.equal(alone.dh, rows["0"]) and len(alone.sigmas) == 1


def test_saved_directions_are_sorted_by_their_noise():
    found = parse_h_space({"dh": drawn(3, 6, 1, 1), "sigmas": torch.tensor([1.0, 9.0, 3.0])}, "file")
    assert found.sigmas == (9.0, 3.0, 1.0) and isinstance(found, Directions)
    assert torch.equal(found.dh, drawn(3, 6, 1, 1)[[1, 2, 0]].float())


DH, SIGMAS = torch.ones(2, 64, 4, 4), torch.tensor([2.0, 1.0])
BAD = {
    "nothing": ({}, "holds nothing"),
    "a lora": ({"lora_unet_x.lora_up.weight": DH}, "holds lora_unet_x.lora_up.weight"),
    "a control net": ({"control_model.zero_convs.0.0.weight": DH}, "delta block of Asyrp or a saved direction"),
    "two blocks": ({"0.conv1.weight": DH, "1.conv1.weight": DH}, "one delta block but holds 2"),
    "no kernel": ({**weights("ddpm"), "conv1.weight": torch.zeros(64)}, "conv1.weight should be (channels, channels"),
    "odd channels": (weights("ddpm", c=48), "multiple of 32"),
    "no width": ({**weights("ddpm"), "temb_proj.weight": torch.zeros(64)}, "temb_proj.weight should be (channels, wid"),
    "no sigmas": ({"dh": DH}, "they are (2, 64, 4, 4) and None"),
    "no dh": ({"sigmas": SIGMAS}, "they are None and (2,)"),
    "too few sigmas": ({"dh": DH, "sigmas": SIGMAS[:1]}, "(2, 64, 4, 4) and (1,)"),
    "no picture": ({"dh": DH[0], "sigmas": SIGMAS}, "(64, 4, 4) and (2,)"),
    "empty": ({"dh": DH[:0], "sigmas": SIGMAS[:0]}, "(0, 64, 4, 4) and (0,)"),
    "below 0": ({"dh": DH, "sigmas": -SIGMAS}, "noise levels, 0 and more"),
    "nan": ({"dh": DH, "sigmas": SIGMAS * torch.nan}, "noise levels, 0 and more"),
    "late steps": ({"1000": DH[0]}, "timestep below 1000"),
    "several shapes": ({"1": DH[0], "2": DH[0, :, :2]}, "shapes [(64, 2, 4), (64, 4, 4)]"),
    "a batch of them": ({"1": DH, "2": DH}, "one direction of the same shape"),
    "flat": ({"1": DH[0, 0], "2": DH[0, 0]}, "holds 0 of 2 so"),
    "no cells": ({"1": DH[0, :, :0], "2": DH[0, :, :0]}, "one direction of the same shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_tensors_are_refused_in_one_sentence(name):
    content, words = BAD[name]
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        parse_h_space(content, "the file")
    assert str(error.value).startswith("the file")
