"""Nodes and runs draw from generators of their own: what other nodes draw from torch's global state stays the same."""

from __future__ import annotations

import comfy.sample
import pytest
import torch
from reins.engine.noise import seeded_noise
from reins.tests.helpers import h_space, prompt_diffusion, tiny_models, unicon
from reins.tests.helpers.methods import METHODS
from reins.tests.host.test_h_space_files import METHODS as WAYS
from reins.tests.host.test_h_space_files import capture


@pytest.fixture
def unmoved():
    """Fails if torch's global state is another one after the test."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_no_global_state(name, sd15):
    tiny_models.sample(METHODS[name](sd15))


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("way", WAYS)
def test_a_capture_moves_no_global_state(way, sd15):
    capture(sd15, method=way)


@pytest.mark.usefixtures("unmoved")
def test_other_nodes_move_no_global_state(sd15):
    prompt_diffusion.control(sd15)
    unicon.joint(sd15)
    h_space.edit(sd15, h_space.block())


@pytest.mark.parametrize("index", [None, [0, 1], [3, 1], [2, 2]])
def test_noise_is_the_hosts_own_for_a_seed(index):
    latent = torch.zeros(2, 4, 6, 5)
    assert torch.equal(seeded_noise(latent, 5, index), comfy.sample.prepare_noise(latent, 5, index))
