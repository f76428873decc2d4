"""Where the network of a weak model comes from, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.guidance.weak_model import with_own_network
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import weak, weaker
from reins.tests.helpers.tiny_models import nearly, sample


@pytest.fixture(params=["alone", "with others"])
def readable(request, sd15):
    """A model that the host knows how to load again, as its own loaders have it; only newer ones load others too."""
    if not hasattr(sd15, "cached_patcher_init"):
        pytest.skip("this host does not read a model's file again")
    loads = []

    def load(seed: int) -> ModelPatcher:
        loads.append(seed)
        return tiny_models.sd15(seed, dtype=torch.float64)

    def load_with_others(seed: int) -> tuple[str, ModelPatcher]:
        return "beside", load(seed)

    forms = {"alone": (load, (0,)), "with others": (load_with_others, (0,), 1)}
    sd15.cached_patcher_init = forms[request.param]
    return sd15, loads


def test_a_network_that_the_host_can_read_again_is_read_and_not_copied(readable):
    model, loads = readable
    own = with_own_network(weaker(model))
    assert loads == [0]
    assert own.model is not model.model and not model.is_clone(own)
    assert own.patches.keys() == weaker(model).patches.keys()
    assert own.parent is None and own.backup == {}
    assert own.clone_base_uuid != getattr(model, "clone_base_uuid", None)


def test_it_makes_no_difference_whether_the_network_is_read_or_copied(readable):
    model, loads = readable
    read = sample(weak(model), steps=2)
    assert loads == [0]
    model.cached_patcher_init = None
    assert nearly(read, sample(weak(model), steps=2))


def test_a_network_of_its_own_knows_no_patcher_of_the_first(sd15):
    sample(sd15, steps=1)
    own = with_own_network(weaker(sd15))
    assert getattr(own.model, "current_patcher", None) is None
    assert own.parent is None
    assert own.model.model_config is sd15.model.model_config
    shared = {id(value) for value in sd15.model.parameters()} & {id(value) for value in own.model.parameters()}
    assert not shared


def test_the_weak_model_is_let_go_when_the_run_is_over(sd15):
    other = tiny_models.sd15(5, dtype=torch.float64)
    sample(weak(sd15, other), steps=2)
    assert other.model.current_patcher is None
