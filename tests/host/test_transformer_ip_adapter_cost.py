"""What an IP-Adapter on a transformer costs: nothing is read from the device, and nothing is made twice."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from unittest import mock

import comfy.model_management
import pytest
import torch
from reins.models.ip_adapter.time_resampler import TimeResampler
from reins.models.ip_adapter.transformer_layers import FluxLayers, SD3Layers
from reins.nodes.ip_adapter.prompt import ImagePrompt
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.steered_transformers import FORMS, MAIN, adapter, apply, begun
from reins.tests.helpers.tiny_models import little_memory, reads_per_step
from reins.tests.helpers.tiny_transformers import sample
from reins.tests.helpers.transformer_terms import term
from torch.utils._python_dispatch import TorchDispatchMode

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)
LAYERS = {"sd3": 3, "sd35m": 5, "xlabs": 2, "instantx": 4, "chroma": 4}  # attentions with matrices


@contextmanager
def counted():
    """Calls of the resampler, and of the layers that make k and v, inside the block. `kept` are what they made."""
    counts, kept = Counter(), []

    def counting(cls, name):
        original = getattr(cls, name)

        def call(self, *args, **kwargs):
            counts[cls.__name__] += 1
            made = original(self, *args, **kwargs)
            kept.extend(weakref.ref(part) for part in made)
            return made

        return mock.patch.object(cls, name, call)

    with (
        counting(TimeResampler, "forward"), counting(SD3Layers, "keys_and_values"),
        counting(FluxLayers, "keys_and_values"),
    ):  # fmt: skip
        yield counts, kept


SETTINGS = [{}, {"mask": torch.ones(1, 4, 4)}, {"per_frame": True}, {"scaling": "K+V", "per_frame": True}]


@EACH
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "plain")
def test_a_step_reads_nothing_from_the_device(form, settings):
    family, model, _ = begun(form)
    steered = apply(form, model, 4, 5, **settings)
    plain = reads_per_step(lambda steps: sample(family, model, steps=steps, batch=2))
    assert reads_per_step(lambda steps: sample(family, steered, steps=steps, batch=2)) == plain


@OF_MAIN
def test_in_a_range_a_step_reads_the_noise_level_once(form):
    family, model, _ = begun(form)
    steered = apply(form, apply(form, model, end_percent=0.5), 5, start_percent=0.3)
    plain = reads_per_step(lambda steps: sample(family, model, steps=steps))
    assert reads_per_step(lambda steps: sample(family, steered, steps=steps)) == plain + 1


def copies(model, family, steps):
    """Tensors made from Python lists, and copies between types or devices of what is no weight, inside a run."""

    class Count(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)
            return func(*args, **(kwargs or {}))

    with Count() as count:
        sample(family, model, steps=steps, batch=2)
    return count.found


@EACH
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "plain")
def test_a_step_makes_no_tensors_of_python_lists(form, settings):
    family, model, _ = begun(form)
    steered = apply(form, model, 4, 5, encode={"image_weights": "1, 0.5"}, **settings)
    extra = [copies(steered, family, steps) - copies(model, family, steps) for steps in (3, 6)]
    assert extra[0] == extra[1]


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_sd3_makes_its_tokens_once_for_a_noise_level(form, sampler):
    family, model, _ = begun(form)
    evaluations = {"euler": 3, "heun": 5}[sampler]
    with counted() as (counts, _):
        sample(family, apply(form, model), steps=3, sampler=sampler, batch=2)
        assert counts == {"TimeResampler": evaluations, "SD3Layers": evaluations * LAYERS[form]}
        counts.clear()
        sample(family, apply(form, model), steps=3, sampler=sampler, cfg=1.0)
        assert counts == {"TimeResampler": evaluations, "SD3Layers": evaluations * LAYERS[form]}


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
def test_sd3_makes_them_once_in_split_batches_and_beside_guidance_too(form, monkeypatch):
    family, model, _ = begun(form)
    expected = {"TimeResampler": 3, "SD3Layers": 3 * LAYERS[form]}
    apart = {name: 2 * count for name, count in expected.items()}  # positive and negative in calls of their own
    steered = term("pag", family, apply(form, model))
    with counted() as (counts, _):
        sample(family, steered, steps=3)
        assert counts == expected
        counts.clear()
        with little_memory(monkeypatch, model):
            sample(family, steered, steps=3)
        assert counts == apart
        counts.clear()
        sample(family, term("pag", family, apply(form, pass_through(model))), steps=3)
        assert counts == apart


@pytest.mark.parametrize("form", ["xlabs", "instantx", "chroma"])
@pytest.mark.parametrize("steps", [1, 4])
def test_flux_makes_keys_and_values_once_in_a_run(form, steps):
    family, model, _ = begun(form)
    steered = term("pag", family, apply(form, model, 4, 5))
    with counted() as (counts, _):
        sample(family, steered, steps=steps, batch=2)
        assert counts == {"FluxLayers": LAYERS[form]}


@EACH
@pytest.mark.parametrize("end", ["well", "error"])
def test_the_tensors_of_a_run_are_gone_after_it(form, end):
    family, model, _ = begun(form)
    steered = apply(form, model)
    with counted() as (_, kept):
        with suppress(ZeroDivisionError):
            sample(family, steered, callback=None if end == "well" else lambda *_: 1 / 0)
        gc.collect()
        assert kept and not any(ref() is not None for ref in kept)


@EACH
def test_a_sampled_model_is_let_go_at_once(form):
    gc.collect()
    gc.disable()
    try:
        family, model, _ = begun(form)
        steered = apply(form, model)
        sample(family, steered)
        alive = weakref.ref(steered)
        del steered, model
        assert alive() is None
    finally:
        gc.enable()


@EACH
def test_the_host_loads_the_weights_that_each_step_needs_and_no_others(form, monkeypatch):
    family, model, _ = begun(form)
    steered, made, loaded = apply(form, apply(form, model), 5), adapter(form, 0), []
    load = comfy.model_management.load_models_gpu

    def note(models, *args, **kwargs):
        for one in models:
            loaded.extend([one, *one.model_patches_models()])
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", note)
    sample(family, steered)
    assert loaded
    needed = {id(made.layers), id(made.projection)}
    found = needed & {id(one) for one in loaded}
    assert found == (needed if form.startswith("sd3") else set())


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
def test_hidden_states_go_to_the_device_once_in_a_run(form):
    """They are megabytes, and a copy from the memory of the host waits."""
    family, model, _ = begun(form)
    steered, moved = apply(form, model), []
    original = ImagePrompt.tokens

    def note(self, role):
        moved.append(role)
        return original(self, role)

    with mock.patch.object(ImagePrompt, "tokens", note):
        sample(family, steered, steps=4)
    assert Counter(moved) == {"cond": 1, "uncond": 1}
