"""Stored results of the official code: both delta blocks, and whole trajectories of a small UNet, by the sampler."""

from __future__ import annotations

from types import SimpleNamespace
from zlib import crc32

import comfy.k_diffusion.sampling as k_diffusion
import numpy as np
import pytest
import torch
from reins.models.h_space.files import parse_h_space
from reins.models.h_space.steps import effective_factor
from reins.nodes.h_space import asyrp as module
from reins.nodes.h_space.direction import StoredDirection
from reins.nodes.h_space.edit import HEdit
from reins.nodes.h_space.load import _block_direction
from reins.tests.helpers import h_space, tiny_models
from reins.tests.helpers.h_space import CASE, golden
from reins.tests.helpers.tiny_models import nearly
from torch import nn
from torch.nn import functional

KEPT = torch.cumprod(1 - torch.linspace(*CASE["betas"], CASE["timesteps"], dtype=torch.float64), 0)
SIGMA = ((1 - KEPT) / KEPT).sqrt()  # of each timestep
TRAJECTORY = golden("traj")
SIGMAS = TRAJECTORY["sigmas"]
EXPECTED = {
    "ddim": TRAJECTORY["ddim"],
    "sym": TRAJECTORY["sym"],
    "asym": torch.cat([TRAJECTORY["asym_boost"][: -len(TRAJECTORY["asym_end"])], TRAJECTORY["asym_end"]]),
    "asym_boost": TRAJECTORY["asym_boost"],
}
ENDS = {"edit": float(SIGMA[CASE["t_edit"]]), "boost": float(SIGMA[CASE["t_boost"] - 1])}  # both inside


def drawn(tag, shape):
    """The random numbers of a tag, as the stored results have them."""
    state = np.random.RandomState((crc32(tag.encode()) + CASE["seed"]) % 2**32)
    return torch.from_numpy(state.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("time", [True, False], ids=["time", "no time"])
@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
def test_a_delta_block_is_the_official_one(layout, time):
    found, given = h_space.block(layout, time), golden("block")
    assert (found.channels, found.time) == (64, 128 if time else None)
    out = found.network.model(given["h"], given["temb"])
    assert nearly(out, given[f"{layout}_out" if time else f"{layout}_out_notime"])
    if time:
        assert nearly(found.network.model(given["h"], None), given[f"{layout}_out_notime"])


@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
def test_the_released_files_have_the_names_and_shapes_of_a_known_layout(layout):
    """Without their values, which are not here."""
    shapes = CASE["layouts"][layout]
    file = parse_h_space({f"0.{key}": torch.zeros(shape) for key, shape in shapes.items()}, layout)
    assert (file.channels, file.time) == (512, 512)
    made = _block_direction(file, layout).network.model.state_dict()
    assert {key: list(value.shape) for key, value in made.items()} == shapes


class TinyUNet(nn.Module):
    """The small network of the stored trajectories, which the official sampling code was run on."""

    def __init__(self):
        super().__init__()
        weights = golden("unet")
        self.weights = {key: value.double() for key, value in weights.items()}
        block = {key.removeprefix("layer_0."): value for key, value in weights.items() if key.startswith("layer_0")}
        self.delta = _block_direction(parse_h_space(block, "layer_0"), "layer_0").network.model.double()

    def _conv(self, name, values, **settings):
        return functional.conv2d(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **settings)

    def _linear(self, name, values):
        return functional.linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _block(self, name, values, emb):
        inner = functional.group_norm(values, 8, self.weights[f"{name}.n.weight"], self.weights[f"{name}.n.bias"])
        inner = self._conv(f"{name}.c", functional.silu(inner), padding=1)
        inner = inner + self._linear(f"{name}.e", functional.silu(emb))[:, :, None, None]
        return self._conv(f"{name}.s", values) + inner

    def forward(self, x, step, edited):
        """The noise in x (b, c, h, w) of the paper."""
        angles = step * torch.exp(-torch.arange(8) * np.log(10000) / 7).double()
        emb = self._linear("temb", torch.cat([angles.sin(), angles.cos()])[None].expand(len(x), -1))
        first = self._block("d1", self._conv("inp", x, padding=1), emb)
        down = self._conv("down", first, stride=2, padding=1)
        h = self._block("mid", down, emb)
        if edited:
            h = h + CASE["coeff"] * self.delta(h, emb)
        h = self._block("u0", torch.cat([h, down], 1), emb)
        h = self._block("u1", torch.cat([functional.interpolate(h, scale_factor=2.0), first], 1), emb)
        return float(1 - KEPT[step]) ** 0.5 * x + 0.2 * self._conv("out", h, padding=1)


NETWORK = TinyUNet()


def from_network(x, index, edited):
    return NETWORK(x, int(TRAJECTORY["timesteps"][index]), edited)


def from_file(x, index, edited):
    stored = TRAJECTORY["edited_eps" if edited and index < len(TRAJECTORY["edited_eps"]) else "eps"]
    return stored[index].double()


class StandIn:
    """What a sampler of the host sees of a model; a call that carries an edit is answered with the edited noise."""

    def __init__(self, predict):
        self.predict, self.edited = predict, []
        percents = {0.5: ENDS["edit"], 0.7: ENDS["boost"], 1.0: 0.0}
        sampling = SimpleNamespace(percent_to_sigma=percents.__getitem__)
        inner = SimpleNamespace(model_sampling=sampling)
        self.inner_model = SimpleNamespace(inner_model=inner, model_patcher=tiny_models.sd15())

    def __call__(self, x, sigma, model_options, **_):
        now = float(sigma[0])
        index = min(range(len(SIGMAS)), key=lambda i: abs(float(SIGMAS[i]) - now))
        entries = model_options.get("transformer_options", {}).get("reins", ())
        edited = any(isinstance(entry, HEdit) for entry in entries)
        self.edited.append(edited)
        return x - now * self.predict(x / (1 + now**2) ** 0.5, index, edited)


def states(sampled):
    """In the paper's x after each step; `sampled(callback)` begins with pure noise of the first level."""
    seen = []
    last = sampled(lambda told: seen.append(told["x"]))
    scales = (1 + SIGMAS[1:, None, None, None, None] ** 2) ** 0.5
    return torch.stack([*seen[1:], last]) / scales


def check(found, name):
    """Each step, by the size of its values."""
    for step, expected in zip(found[:, : EXPECTED[name].shape[1]], EXPECTED[name], strict=True):
        assert nearly(step, expected.double(), 1e-5)


def start():
    return drawn("x_T", TRAJECTORY["x_T"].shape).double() * float((1 + SIGMAS[0] ** 2) ** 0.5)


def numbered_noise(monkeypatch):
    """The stored noises in place of the host's; they are numbered by their step."""
    shape = TRAJECTORY["x_T"].shape

    def sampler(x, seed):
        assert seed == 5
        return lambda sigma, following: drawn(f"z_{int((SIGMAS - sigma).abs().argmin())}", shape).double()

    monkeypatch.setattr(module, "default_noise_sampler", sampler)


def sample(predict, boost_start=1.0):
    model = StandIn(predict)
    direction = h_space.asyrp(h_space.stored(), 1.0, 0.5, boost_start, 1.0).extra_options["asyrp"]
    assert isinstance(direction.edit.direction, StoredDirection)
    args = {"model_options": {}, "seed": 5}
    found = states(
        lambda callback: module.sample_asyrp(model, start(), SIGMAS, args, callback, disable=True, asyrp=direction)
    )
    assert model.edited == [False, True] * 5 + [False] * 5  # down to timestep 555
    return found


def test_the_small_network_is_the_stored_one():
    x, step = drawn("x_T", TRAJECTORY["x_T"].shape).double(), int(TRAJECTORY["timesteps"][0])
    assert torch.equal(x.float(), TRAJECTORY["x_T"])
    for edited, name in ((False, "eps"), (True, "edited_eps")):
        assert nearly(NETWORK(x, step, edited), TRAJECTORY[name][0].double(), 1e-5)


@pytest.mark.parametrize("predict", [from_file, from_network])
def test_a_boosted_asymmetric_trajectory_is_the_official_one(predict, monkeypatch):
    numbered_noise(monkeypatch)
    check(sample(predict, 0.7), "asym_boost")


def test_an_asymmetric_trajectory_is_the_official_one(monkeypatch):
    numbered_noise(monkeypatch)
    check(sample(from_network), "asym")


def by_euler(predicted):
    """A run of the host's Euler, of which each prediction is made of the plain and the edited one."""
    model = StandIn(None)

    def denoised(x, sigma, **_):
        index = int((SIGMAS - sigma[0]).abs().argmin())
        now, following = (float(SIGMAS[i]) for i in (index, index + 1))
        plain, edited = (x - now * from_network(x / (1 + now**2) ** 0.5, index, edit) for edit in (False, True))
        return predicted(plain, edited, now, following)

    denoised.inner_model = model.inner_model
    return states(lambda callback: k_diffusion.sample_euler(denoised, start(), SIGMAS, {}, callback, disable=True))


def test_unedited_and_symmetric_trajectories_are_the_official_ones():
    """The stand-in for the host's Euler is right: so is what the next test says."""
    check(by_euler(lambda plain, edited, now, following: plain), "ddim")
    check(by_euler(lambda plain, edited, now, following: edited if now >= ENDS["edit"] else plain), "sym")


def test_the_effective_picture_makes_the_hosts_euler_the_official_asymmetric_step():
    def effective(plain, edited, now, following):
        factor = effective_factor(now, following, is_flow=False) if now >= ENDS["edit"] else 0.0
        return plain + factor * (edited - plain)

    check(by_euler(effective), "asym")
