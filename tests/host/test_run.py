"""State of a run: born with it, shared in it, gone after it."""

from __future__ import annotations

import copy
import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from reins.engine import run as run_module
from reins.engine.run import RUN, Run
from reins.nodes.guidance.self_attention import seen_in
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS, pag, sag
from reins.tests.helpers.other_packs import regrouped
from reins.tests.helpers.tiny_models import nearly, sample


def watch_runs(model):
    """A model that notes the run of every call of the network."""
    runs = []

    def look(executor, *args, **kwargs):
        runs.append(args[5][RUN])
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", look)
    return model, runs


def test_a_run_is_one_object_for_all_steps_and_another_for_the_next(method, sd15):
    if method is METHODS["rescale"]:
        pytest.skip("rescale keeps no state and asks for none")
    model, runs = watch_runs(method(sd15))
    sample(model, steps=2)
    first = set(map(id, runs))
    kept = list(runs)
    runs.clear()
    sample(model, steps=2)
    assert len(first) == 1 and len(set(map(id, runs))) == 1
    assert kept[0] is not runs[0]


@pytest.mark.parametrize("end", ["well", "error", "interrupt"])
def test_nothing_of_a_run_outlives_it(end, sd15):
    class Fault(Exception):
        pass

    fault = {"error": Fault, "interrupt": comfy.model_management.InterruptProcessingException, "well": None}[end]
    model, runs = watch_runs(sag(pag(sd15)))
    maps = []

    def stop(*_):
        maps.extend(weakref.ref(found.received) for found in seen_in(runs[0].step).maps)
        if fault:
            raise fault

    if fault:
        with pytest.raises(fault):
            sample(model, callback=stop)
    else:
        sample(model, callback=stop)
    assert maps
    assert runs[0].step is None and not runs[0]._made
    gc.collect()
    assert all(ref() is None for ref in maps)
    assert RUN not in model.model_options["transformer_options"]


def test_a_models_own_options_keep_nothing_when_they_are_sampled_unprepared(sd15):
    """Code without a guider may hand a model's options straight to the host's sampling function."""
    steered = sag(pag(sd15))
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(tiny_models.text(1)[0][0])]
    negative = [tiny_models.cond(tiny_models.text(2)[0][0])]
    expected = tiny_models.denoise(steered, x, 3.0, positive, negative, 5.0)
    steered.pre_run()
    with torch.no_grad():
        found = comfy.samplers.sampling_function(
            steered.model, x, torch.full((1,), 3.0), negative, positive, 5.0, steered.model_options
        )
    steered.cleanup()
    assert nearly(found, expected)
    assert RUN not in steered.model_options["transformer_options"]


def test_only_the_main_predictions_leave_maps(sd15):
    model, runs = watch_runs(sag(pag(sd15)))
    counts = []
    sample(model, callback=lambda *_: counts.append(len(seen_in(runs[0].step).maps)))
    assert counts == [2] * 2  # negative and positive


def test_what_is_made_once_is_made_once_per_run():
    run, calls = Run(), []
    for _ in range(3):
        assert run.once("key", lambda: calls.append(1) or "made") == "made"
    assert calls == [1]
    run.clear()
    run.once("key", lambda: calls.append(1))
    assert calls == [1, 1]


def test_a_copied_run_has_empty_caches():
    run = Run()
    run.once("key", lambda: torch.zeros(3))
    assert copy.deepcopy({"a": run})["a"]._made == {}


def test_a_pack_that_copies_the_options_of_a_call_changes_nothing(method, sd15):
    """What a method draws from the seed or notes in a step must not be lost with the copy."""

    def send(apply_model, args):
        options = copy.deepcopy(args["c"]["transformer_options"])
        return apply_model(args["input"], args["timestep"], **{**args["c"], "transformer_options": options})

    assert nearly(sample(method(regrouped(sd15, send))), sample(method(sd15)))


def test_runs_inside_runs_do_not_disturb_each_other(sd15):
    """Another pack samples another steered model in the middle of our run."""
    steered = sag(pag(tiny_models.sd15(seed=1, dtype=torch.float64)))
    alone, expected = sample(sag(pag(sd15)), steps=2), sample(steered, seed=9, steps=2)
    inner = []

    def nested(args):
        if not inner:
            inner.append(None)
            inner[0] = sample(steered, seed=9, steps=2)
        return args["denoised"]

    outer = sd15.clone()
    outer.set_model_sampler_post_cfg_function(nested)
    assert nearly(sample(sag(pag(outer)), steps=2), alone)
    assert torch.equal(inner[0], expected)


def test_a_post_cfg_function_that_predicts_again_before_ours_changes_nothing(sd15):
    def predict_again(args):
        conds = args["uncond"], args["cond"]
        comfy.samplers.sampling_function(
            args["model"],
            args["input"],
            args["sigma"],
            *conds,
            5.0,
            args["model_options"] | {"sampler_post_cfg_function": []},
        )
        return args["denoised"]

    other = sd15.clone()
    other.set_model_sampler_post_cfg_function(predict_again)
    assert nearly(sample(sag(pag(other))), sample(sag(pag(sd15))))


def test_no_module_keeps_state():
    assert not [
        name for name, value in vars(run_module).items() if isinstance(value, (list, dict, set, Run)) and name[0] != "_"
    ]
