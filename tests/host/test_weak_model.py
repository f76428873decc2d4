"""Where the network of a weak model comes from, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras import nodes_model_advanced
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


def zsnr(model: ModelPatcher) -> ModelPatcher:
    node = nodes_model_advanced.ModelSamplingDiscrete
    if hasattr(node, "execute"):
        return node.execute(model, "v_prediction", True).result[0]
    return node().patch(model, "v_prediction", True)[0]


@pytest.mark.parametrize("kind", ["own network", "shared network"])
def test_a_sampling_that_is_changed_after_the_node_is_refused(kind, sd15):
    weak_model = weaker(sd15) if kind == "own network" else sd15.clone()
    both = sample(weak(zsnr(sd15), zsnr(weak_model)), cfg=1.0)
    assert both.isfinite().all() and both.abs().max() < 1e3
    with pytest.raises(ValueError, match=r"changes the sampling of the model alone.*Put it before that node"):
        sample(zsnr(weak(sd15, weak_model)), cfg=1.0)
    assert torch.equal(sample(weak(sd15, weak_model)), sample(weak(sd15, weak_model)))


def test_models_that_were_sampled_differently_from_the_start_stay_allowed(sd15):
    assert sample(weak(zsnr(sd15), weaker(sd15)), cfg=1.0).isfinite().all()


def test_a_weak_model_has_the_hosts_nag_beside_its_negative(sd15):
    """With an equal weak model the term is nothing, although that NAG acts on a positive beside a negative alone."""
    nag = pytest.importorskip("comfy_extras.nodes_nag", reason="this host has no NAG").NAGuidance
    model = nag.execute(sd15, 5.0, 0.5, 2.5).result[0]
    assert nearly(sample(weak(model, model.clone())), sample(model))
    assert not nearly(sample(model), sample(sd15), 1e-2)
