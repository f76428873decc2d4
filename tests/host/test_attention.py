"""The attention mechanism: laws of layers, other packs' slots, sites of real layouts."""

from __future__ import annotations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from reins.engine.entries import KEY
from reins.engine.layers.of_host import host_attention
from reins.engine.network import add_attention_layer
from reins.engine.span import Span
from reins.engine.unet import find_sites
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS, pag
from reins.tests.helpers.tiny_models import nearly, sample


def look(call, below):
    return below(call)


def shift(amount):
    return lambda call, below: below(call) + amount * call.q.mean(1, keepdim=True)


def with_layers(model, *pairs, **options):
    for site, layer in pairs:
        model = add_attention_layer(model, [site], layer, **options)
    return model


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_find_sites_names_every_attention_as_the_host_does(kind, model):
    seen = []

    def record(call, below):
        seen.append(call.site)
        return below(call)

    sites = find_sites(model, kind)
    sample(with_layers(model, *((site, record) for site in sites)), steps=2)
    assert seen[: len(sites)] == sites


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_layer_that_only_looks_changes_no_bit(kind, model):
    watched = with_layers(model, *((site, look) for site in find_sites(model, kind)))
    assert torch.equal(sample(watched), sample(model))


def test_a_compiled_network_has_the_sites_of_the_one_it_was_made_from(sd15):
    compiled = sd15.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(sd15.model.diffusion_model))
    assert find_sites(compiled, "attn1") == find_sites(sd15, "attn1")


def test_layers_that_add_commute(model):
    site = find_sites(model, "attn2")[0]
    forth = with_layers(model, (site, shift(0.5)), (site, shift(-0.2)))
    back = with_layers(model, (site, shift(-0.2)), (site, shift(0.5)))
    assert nearly(sample(forth), sample(back))
    assert not nearly(sample(forth), sample(model), 1e-3)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("key", [("middle", 0), ("middle", 0, 0)])
def test_a_foreign_slot_is_kept_underneath_whenever_it_was_set(before, key, sd15):
    site = next(site for site in find_sites(sd15, "attn2") if site.block == "middle")

    def halve(q, k, v, options):
        return host_attention(q, k, v, options) * 0.5

    foreign = sd15.clone()
    foreign.set_model_attn2_replace(halve, *key)
    stacked = with_layers(foreign if before else sd15, (site, shift(0.5)))
    if not before:
        stacked.set_model_attn2_replace(halve, *key)

    def both(q, k, v, options):
        return halve(q, k, v, options) + 0.5 * q.mean(1, keepdim=True)

    expected = sd15.clone()
    expected.set_model_attn2_replace(both, *key)
    assert nearly(sample(stacked), sample(expected))
    assert not nearly(sample(stacked), sample(foreign), 1e-3)


def test_a_perturbed_layer_sees_no_row_of_the_main_predictions(sd15):
    """A foreign patch below notes which chunks it gets: the perturbed one never reaches it."""
    seen = []

    def note(q, k, v, options):
        seen.append((list(options["cond_or_uncond"]), len(options["uuids"]), len(q)))
        return host_attention(q, k, v, options)

    foreign = sd15.clone()
    foreign.set_model_attn1_replace(note, "middle", 0)
    sample(pag(foreign), batch=2, steps=2)
    assert seen == [([1, 0], 2, 4)] * 2


def test_the_users_choice_of_kernel_holds_in_steered_layers(method, sd15):
    """An attention override of the user sees every attention of the main predictions, steered or not."""
    calls = []

    def override(func, *args, **kwargs):
        calls.append(len(args[0]))
        return func(*args, **kwargs)

    def rows(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        calls.clear()
        sample(model, steps=2)
        return sum(calls)

    assert rows(method(sd15)) >= rows(sd15) or method is METHODS["interval"]


def test_layers_outside_their_range_are_not_even_stacked(sd15):
    site, calls = find_sites(sd15, "attn1")[0], []

    def count(call, below):
        calls.append(1)
        return below(call)

    sample(with_layers(sd15, (site, count), span=Span(0.0, 0.3)), steps=10)
    assert len(calls) == 3
    sample(with_layers(sd15, (site, count), span=Span(0.999, 0.9995)), steps=10)
    assert len(calls) == 3


def test_a_clone_shares_the_layers_and_copies_none(sd15):
    class Heavy:
        def __deepcopy__(self, memo):
            raise AssertionError("the host copied a layer")

        def __call__(self, call, below):
            return below(call)

    steered = with_layers(sd15, (find_sites(sd15, "attn1")[0], Heavy()))
    entry = steered.model_options["transformer_options"][KEY][0]
    assert steered.clone().clone().model_options["transformer_options"][KEY] == [entry]


def test_the_wrappers_are_installed_once(sd15):
    steered = sd15
    for method in [*METHODS.values(), *METHODS.values()]:
        steered = method(steered)
    assert {WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL} <= set(steered.wrappers)
    for by_key in steered.wrappers.values():
        assert all(len(wrappers) <= 1 for wrappers in by_key.values())
    assert len(steered.get_all_wrappers(WrappersMP.APPLY_MODEL)) == 1


def test_a_foreign_token_merge_is_named_where_it_matters(sd15):
    merged = sd15.clone()
    merged.set_model_attn1_patch(lambda q, k, v, options: (q[:, ::2], k, v))
    merged.set_model_attn1_output_patch(lambda n, options: n.repeat_interleave(2, 1))
    with pytest.raises(RuntimeError, match=r"queries.*values: another patch merges tokens"):
        sample(pag(merged))
    for method in ("seg", "seg-narrow"):
        with pytest.raises(RuntimeError, match=r"4x4 layer should have 16 tokens but has 8: another patch merges"):
            sample(METHODS[method](merged))
    assert sample(METHODS["sag"](merged)).isfinite().all()  # keys are whole, so the map is
    assert sample(merged).isfinite().all()


def test_attention_over_time_is_left_alone():
    """Video models route it through the same slot; only attention over space is steered."""
    seen = []

    def note(call, below):
        seen.append(tuple(call.q.shape[:2]))
        return below(call)

    model = tiny_models.video()
    site = next(site for site in find_sites(model, "attn1") if site.block == "middle")
    frames = tiny_models.noise(b=3)
    sample(with_layers(model, (site, note)), batch=3, start=frames, steps=2)
    assert seen == [(6, 16)] * 2  # two conds of three frames, four by four cells
    assert sample(pag(model), batch=3, start=frames, steps=2).isfinite().all()
    seen.clear()
    model.model.diffusion_model.default_num_video_frames = 4  # as many as the layer has cells: all shapes are equal
    sample(with_layers(model, (site, note)), size=(8, 8), batch=4, start=tiny_models.noise(8, 8, b=4), steps=2)
    assert seen == [(8, 4)] * 2


def test_the_order_of_the_graph_is_kept_however_a_host_merges_lists(sd15):
    """0.3.64 turns lists around where a hook meets the model's options."""
    site = find_sites(sd15, "attn2")[0]
    doubled = with_layers(sd15, (site, shift(0.5)), (site, lambda call, below: 2 * below(call)))
    turned = doubled.clone()
    options = turned.model_options["transformer_options"]
    turned.model_options["transformer_options"] = {**options, KEY: options[KEY][::-1]}
    other = with_layers(sd15, (site, lambda call, below: 2 * below(call)), (site, shift(0.5)))
    assert torch.equal(sample(turned), sample(doubled))
    assert not nearly(sample(other), sample(doubled), 1e-3)
