"""Nodes and runs draw from generators of their own: what other nodes draw from torch's global state stays the same."""

from __future__ import annotations

import comfy.sample
import pytest
import torch
from reins.engine.noise import seeded_noise
from reins.nodes.h_space import direction_node
from reins.nodes.h_space.direction_node import HDirectionCapture
from reins.tests.helpers import h_space, prompt_diffusion, tiny_models, unicon
from reins.tests.helpers.methods import METHODS


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
@pytest.mark.parametrize("way", direction_node.METHODS)
def test_a_capture_moves_no_global_state(way, sd15):
    prompts = {} if way == direction_node.METHODS[1] else {"source": h_space.SOURCE, "target": h_space.TARGET}
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    HDirectionCapture.execute(sd15, tiny_models.text(1), latent, 3, 2, method=way, **prompts)


@pytest.mark.usefixtures("unmoved")
def test_other_nodes_move_no_global_state(sd15):
    prompt_diffusion.control(sd15)
    unicon.joint(sd15)
    h_space.edit(sd15, h_space.block())


@pytest.mark.parametrize("index", [None, [0, 1], [3, 1], [2, 2]])
def test_noise_is_the_hosts_own_for_a_seed(index):
    latent = torch.zeros(2, 4, 6, 5)
    assert torch.equal(seeded_noise(latent, 5, index), comfy.sample.prepare_noise(latent, 5, index))
