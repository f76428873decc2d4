"""The feature mechanism: laws of terms, other packs' patches at the same places, sites of real layouts."""

from __future__ import annotations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from reins.engine.entries import KEY
from reins.engine.layers.features import FeatureSite, channels_at
from reins.engine.network import add_attention_layer, add_feature_layer
from reins.engine.span import Span
from reins.engine.unet import find_sites, unet_of
from reins.tests.helpers import tiny_models
from reins.tests.helpers.other_packs import hook_with
from reins.tests.helpers.tiny_models import nearly, sample, text

SITES = [FeatureSite("input", 0), FeatureSite("input", 3), FeatureSite("output", 0), FeatureSite("output", 4)]


def look(call):
    return None


def shift(amount):
    """Depends on the feature, so that a term which saw another's would differ."""
    return lambda call: amount * call.feature.mean((2, 3), keepdim=True).expand_as(call.feature) + amount


def own_patch(model, site, change):
    """What another pack does at the place of a site."""
    model = model.clone()
    if site.block == "input":
        model.set_model_input_block_patch_after_skip(lambda h, o: change(h) if o["block"] == site else h)
    else:
        model.set_model_output_block_patch(lambda h, skip, o: (change(h) if o["block"] == site else h, skip))
    return model


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_term_that_is_none_changes_no_bit(site, model):
    assert torch.equal(sample(add_feature_layer(model, site, look)), sample(model))


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_term_is_added_where_it_says_and_nowhere_else(site, model):
    """Behind the skip of an input block, before that of an output block."""
    expected = own_patch(model, site, lambda h: h + 0.3 * h.mean((2, 3), keepdim=True) + 0.3)
    assert nearly(sample(add_feature_layer(model, site, shift(0.3))), sample(expected))
    assert not nearly(sample(model), sample(expected), 1e-3)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_terms_of_a_site_do_not_see_each_other(site, sd15):
    first = add_feature_layer(add_feature_layer(sd15, site, shift(0.3)), site, shift(-0.2))
    second = add_feature_layer(add_feature_layer(sd15, site, shift(-0.2)), site, shift(0.3))
    assert nearly(sample(first), sample(second))
    assert nearly(sample(first), sample(add_feature_layer(sd15, site, shift(0.1))))


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("before", [True, False])
def test_another_packs_patch_sees_the_sum(site, before, sd15):
    def theirs(model):
        return own_patch(model, site, lambda h: 2 * h)

    steered = (
        add_feature_layer(theirs(sd15), site, shift(0.3))
        if before
        else theirs(add_feature_layer(sd15, site, shift(0.3)))
    )
    expected = own_patch(sd15, site, lambda h: 2 * (h + 0.3 * h.mean((2, 3), keepdim=True) + 0.3))
    assert nearly(sample(steered), sample(expected))


def test_the_lists_of_the_host_stay_as_they_were(sd15):
    theirs = own_patch(sd15, SITES[0], lambda h: 2 * h)
    steered = add_feature_layer(theirs, SITES[0], shift(0.3))
    expected = sample(theirs)
    sample(steered)
    patches = steered.model_options["transformer_options"]["patches"]
    assert [len(of_kind) for of_kind in patches.values()] == [1]
    assert torch.equal(sample(theirs), expected)


def test_a_span_holds(sd15):
    steps = []

    def note(call):
        steps.append(call.options["sigmas"])

    sample(add_feature_layer(sd15, SITES[0], note, Span(0.3, 0.6)), steps=10)
    assert len(steps) == 3


def test_clones_share_terms_and_branches_do_not(sd15):
    trunk = add_feature_layer(sd15, SITES[0], shift(0.3))
    expected = sample(trunk)
    branch = add_feature_layer(trunk.clone(), SITES[2], shift(0.3))
    assert not nearly(sample(branch), expected, 1e-3)
    assert torch.equal(sample(trunk.clone().clone()), expected)


def test_a_hook_that_brings_a_term_a_second_time_changes_nothing(sd15):
    steered = add_feature_layer(sd15, SITES[0], shift(0.3))
    group = hook_with(steered)
    found = sample(steered, positive=text(1, hooks=group), negative=text(2, hooks=group))
    assert nearly(found, sample(steered))


def test_layers_of_both_kinds_share_one_set_of_wrappers(sd15):
    steered = add_feature_layer(sd15, SITES[0], shift(0.3))
    steered = add_attention_layer(steered, find_sites(steered, "attn1")[:1], lambda call, below: 2 * below(call))
    steered = add_feature_layer(steered, SITES[2], shift(0.3))
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL, WrappersMP.OUTER_SAMPLE):
        assert len(steered.wrappers[kind][KEY]) == 1
    assert not nearly(sample(steered), sample(add_feature_layer(sd15, SITES[0], shift(0.3))), 1e-3)


def test_a_call_tells_the_time_and_the_chunks(sd15):
    calls = []

    def note(call):
        calls.append((call.timesteps, [chunk.label for chunk in call.chunks], call.chunks, call.feature.shape))

    sample(add_feature_layer(sd15, SITES[0], note), batch=2, steps=1)
    ((timesteps, labels, chunks, shape),) = calls
    assert sorted(labels) == [0, 1] and len(chunks) == 2
    assert len(timesteps) == shape[0] == 4 and len(timesteps.unique()) == 1


def test_code_without_conditioning_is_one_chunk(sd15):
    calls = []

    def note(call):
        calls.append(call.chunks)

    steered = add_feature_layer(sd15, SITES[0], note)
    options = {**steered.model_options["transformer_options"], "wrappers": steered.wrappers}
    x = tiny_models.noise().double()
    unet_of(sd15)(x, torch.tensor([5.0]), context=text(1)[0][0].double(), transformer_options=options)
    (((chunk,),)) = calls
    assert (chunk.uuid, chunk.label, chunk.is_negative, chunk.images) == (None, 0, False, (0,))


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_number_of_channels_is_that_of_the_feature(site, model):
    shapes = []

    def note(call):
        shapes.append(call.feature.shape[1])

    sample(add_feature_layer(model, site, note), steps=1)
    assert set(shapes) == {channels_at(unet_of(model), site)}
