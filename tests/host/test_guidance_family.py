"""Guidance by one more prediction (TPG, SWG, a weaker model), against a few lines that use the host alone."""

from __future__ import annotations

from contextlib import ExitStack

import comfy.conds
import comfy.hooks
import comfy.model_management
import comfy.samplers
import pytest
import torch
from reins.engine.run import RUN, STEP, Run, Step
from reins.engine.unet import find_transformers, unet_of
from reins.models.guidance.windows import windows
from reins.nodes.guidance.token_perturbation import shuffle_tokens
from reins.tests.helpers import h_space, ip_adapter, tiny_models
from reins.tests.helpers.calls import token_call
from reins.tests.helpers.methods import swg as any_swg
from reins.tests.helpers.methods import tpg, weak, weaker
from reins.tests.helpers.predictions import KINDS, conds, denoise, in_one_run
from reins.tests.helpers.tiny_models import nearly, noise, text

# --- TPG ---


def order(site, count, sigma=3.0, seed=0):
    """The pack's own order of `count` tokens."""
    run = Run()
    run.seed = seed
    step = Step(x=torch.zeros(1), timestep=torch.zeros(1), sigma=sigma)
    return shuffle_tokens(token_call(torch.arange(count)[None, :, None], site, {RUN: run, STEP: step}))[0, :, 0]


def shuffled(model, places, sigma=3.0, seed=0, **settings):
    """The positive with the tokens that enter some transformer blocks in that order."""
    unet = unet_of(model)
    with ExitStack() as stack:
        for block in find_transformers(unet):
            if (block.block, block.number) in places:

                def enter(module, inputs, kwargs, block=block):
                    return (
                        inputs[0][:, order(block.site("attn1"), inputs[0].shape[1], sigma, seed)],
                        *inputs[1:],
                    ), kwargs

                module = unet.get_submodule(block.path)
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        return denoise(model, 1.0, sigma, **settings)


@pytest.mark.parametrize(("cfg", "size", "share"), [(5.0, (12, 12), True), (1.0, (7, 18), True), (5.0, (7, 18), False)])
def test_tpg_steers_away_from_shuffled_tokens(model, size, cfg, share):
    expected = denoise(model, cfg, size=size)
    expected = expected + 2.0 * (denoise(model, 1.0, size=size) - shuffled(model, [("middle", 0)], size=size))
    assert nearly(denoise(tpg(model, 2.0, share=share), cfg, size=size), expected)
    assert not nearly(expected, denoise(model, cfg, size=size), 1e-3)


def test_tpg_at_several_layers_shuffles_each_of_them(sdxl):
    places = [("middle", 0), ("output", 0), ("input", 5)]
    expected = denoise(sdxl, b=2) + 3.0 * (denoise(sdxl, 1.0, b=2) - shuffled(sdxl, places, b=2))
    assert nearly(denoise(tpg(sdxl, layers="m0,u0,d1"), b=2), expected)


def test_the_order_of_tokens_goes_by_seed_noise_level_and_block(sd15):
    first, other = (block.site("attn1") for block in find_transformers(unet_of(sd15))[:2])
    found = order(first, 64)
    assert torch.equal(found, order(first, 64)) and torch.equal(found.sort().values, torch.arange(64))
    for changed in (order(first, 64, seed=2**64 - 1), order(first, 64, 2.9999), order(other, 64)):
        assert not torch.equal(found, changed)


def test_tpg_shuffles_by_the_runs_seed_and_the_noise_level_of_each_call(sd15):
    x = noise(12, 12)
    points = [(9 * x, 9.0), (5 * x, 5.0), (4 * x, 9.0)]  # as a sampler of second order might ask
    for seed in (7, 8):
        for (x, sigma), found in zip(points, in_one_run(tpg(sd15), points, seed=seed), strict=True):
            away = shuffled(sd15, [("middle", 0)], sigma, seed, x=x)
            plain, positive = (denoise(sd15, cfg, sigma, x=x) for cfg in (5.0, 1.0))
            assert nearly(found, plain + 3.0 * (positive - away))


def test_tpg_leaves_everyones_random_numbers_alone(sd15):
    before = torch.get_rng_state()
    assert torch.equal(denoise(tpg(sd15)), denoise(tpg(sd15)))
    assert torch.equal(torch.get_rng_state(), before)


def test_tpg_shuffles_the_places_of_a_video_and_not_its_frames():
    model = tiny_models.video()
    expected = denoise(model, b=3) + 3.0 * (denoise(model, 1.0, b=3) - shuffled(model, [("middle", 0)], b=3))
    assert nearly(denoise(tpg(model), b=3), expected)


# --- SWG ---


def swg(model, scale=2.0, tile=64, overlap=32, **span):
    return any_swg(model, scale, tile, overlap, **span)


def by_windows(model, x, sigma=3.0, tile=8, overlap=4, positive=None, ask=None):
    """The mean of what the host predicts for windows of x."""
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for h, w, top, left in windows(tuple(x.shape[-2:]), tile, overlap):
        part = (..., slice(top, top + h), slice(left, left + w))
        seen = denoise(model, 1.0, sigma, positive=positive, x=x[part]) if ask is None else ask(part)
        total[part], count[part] = total[part] + seen, count[part] + 1
    return total / count


@pytest.mark.parametrize(("size", "b", "cfg"), [((12, 12), 2, 5.0), ((9, 15), 1, 1.0), ((5, 19), 1, 5.0)])
def test_swg_steers_away_from_the_mean_over_windows(model, size, b, cfg):
    x = 3 * noise(*size, b=b)
    plain, positive = denoise(model, cfg, x=x), denoise(model, 1.0, x=x)
    assert nearly(denoise(swg(model, 1.5), cfg, x=x), plain + 1.5 * (positive - by_windows(model, x)))


@pytest.mark.parametrize("kind", KINDS)
def test_swg_is_the_same_for_every_kind_of_prediction(kind):
    model, sigma = tiny_models.sd15(kind=kind, dtype=torch.float64), 0.7
    x = sigma * noise(12, 12)
    away = denoise(model, 1.0, sigma, x=x) - by_windows(model, x, sigma)
    assert nearly(denoise(swg(model), sigma=sigma, x=x), denoise(model, sigma=sigma, x=x) + 2.0 * away)


def test_windows_of_a_size_are_one_call_and_a_small_picture_is_none(sd15):
    with tiny_models.forwards(sd15) as rows:
        denoise(swg(sd15))
    assert sorted(rows) == [2, 4]
    with tiny_models.forwards(sd15) as rows:
        assert torch.equal(denoise(swg(sd15, tile=128)), denoise(sd15))
    assert rows == [2, 2]


def test_swg_cuts_masks_and_areas_as_the_host_places_them(sd15):
    mask = torch.rand((1, 12, 12), generator=torch.Generator().manual_seed(1))
    positive = [*conds(1, area=(10, 7, 1, 5), strength=0.6), *conds(3, mask=mask, mask_strength=0.8), *conds(4)]
    x = 3 * noise(12, 12)
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for cond in positive:
        placed = comfy.samplers.get_area_and_mult(cond, x, torch.tensor([3.0]))
        h, w, top, left = placed.area or (12, 12, 0, 0)
        weights = torch.zeros_like(x)
        weights[..., top : top + h, left : left + w] = placed.mult
        alone = [{key: cond[key] for key in ("model_conds", "uuid")}]
        for wh, ww, wtop, wleft in windows((h, w), 8, 4):  # a prompt for an area has windows of that area
            part = (..., slice(top + wtop, top + wtop + wh), slice(left + wleft, left + wleft + ww))
            total[part] += weights[part] * denoise(sd15, 1.0, x=x[part], positive=alone)
            count[part] += weights[part]
    plain, seen = (denoise(sd15, cfg, x=x, positive=positive) for cfg in (5.0, 1.0))
    assert nearly(denoise(swg(sd15), x=x, positive=positive), plain + 2.0 * (seen - total / count))


def test_swg_cuts_what_is_concatenated():
    model = tiny_models.sd15(in_channels=8, dtype=torch.float64)
    beside, x = noise(12, 12, seed=9), 3 * noise(12, 12)

    def prompt(seed, part):
        (cond,) = conds(seed)
        return [{**cond, "model_conds": {**cond["model_conds"], "c_concat": comfy.conds.CONDNoiseShape(part)}}]

    def ask(part):
        return denoise(model, 1.0, x=x[part], positive=prompt(1, beside[part]))

    positive, negative = prompt(1, beside), prompt(2, beside)
    plain, seen = (denoise(model, cfg, x=x, positive=positive, negative=negative) for cfg in (5.0, 1.0))
    expected = plain + 2.0 * (seen - by_windows(model, x, ask=ask))
    assert nearly(denoise(swg(model), x=x, positive=positive, negative=negative), expected)


@pytest.mark.parametrize("b", [1, 2])
def test_swg_cuts_the_hint_of_a_control_net(b, sd15):
    x, once = noise(12, 12, b), torch.tensor([3.0, 0.0])
    hint = torch.rand((b, 3, 96, 96), generator=torch.Generator().manual_seed(4))

    def ask(start, hint, model=sd15, cfg=1.0):
        control = tiny_models.controlnet().set_cond_hint(hint, strength=0.9)
        return h_space.run(model, cfg=cfg, sigmas=once, start=start, positive=text(1, control=control))

    def window(part):
        return ask(x[part], hint[(..., *(slice(8 * one.start, 8 * one.stop) for one in part[1:]))])

    expected = ask(x, hint, cfg=5.0) + 2.0 * (ask(x, hint) - by_windows(sd15, x, ask=window))
    assert nearly(ask(x, hint, swg(sd15), 5.0), expected)


# --- a weaker model ---


def weakened(model, share=0.2):
    """As `weaker`, in the weights themselves."""
    made = tiny_models.sd15(dtype=torch.float64)
    for name, p in made.model.diffusion_model.named_parameters():
        if name.endswith(("to_v.weight", "to_k.weight")):
            p.data.mul_(1 - share)
    return made


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_a_weak_model_is_steered_away_from(cfg, sd15):
    other = tiny_models.sd15(5, dtype=torch.float64)
    for b in (1, 2):
        expected = denoise(sd15, cfg, b=b) + 1.5 * (denoise(sd15, 1.0, b=b) - denoise(other, 1.0, b=b))
        assert nearly(denoise(weak(sd15, other, 1.5), cfg, b=b), expected)


def test_the_same_network_with_other_weights_gets_one_of_its_own(sd15):
    before = {key: value.clone() for key, value in sd15.model.state_dict().items()}
    expected = denoise(sd15) + 2.0 * (denoise(sd15, 1.0) - denoise(weakened(sd15), 1.0))
    steered = weak(sd15, weaker(sd15))
    for _ in range(2):
        assert nearly(denoise(steered), expected)
        assert all(torch.equal(value, before[key]) for key, value in sd15.model.state_dict().items())
    strong = weaker(sd15)  # and the other way round: the model has a LoRA, the weak one has none
    expected = denoise(weakened(sd15)) + 2.0 * (denoise(weakened(sd15), 1.0) - denoise(sd15, 1.0))
    assert nearly(denoise(weak(strong, sd15)), expected)
    comfy.model_management.unload_all_models()
    assert all(torch.equal(value, before[key]) for key, value in sd15.model.state_dict().items())


def test_the_same_weights_with_an_adapter_on_one_are_one_network(sd15):
    for strong, other in ((sd15, ip_adapter.apply(sd15)), (ip_adapter.apply(sd15), sd15)):
        expected = denoise(strong) + 2.0 * (denoise(strong, 1.0) - denoise(other, 1.0))
        steered = weak(strong, other)
        with tiny_models.forwards(sd15) as rows:
            assert nearly(denoise(steered), expected)
        assert sorted(rows) == [1, 2]


def test_a_weak_model_has_the_areas_of_the_prompt(sd15):
    other = tiny_models.sd15(5, dtype=torch.float64)
    positive = [*conds(1, area=(12, 7, 0, 0)), *conds(3, area=(12, 8, 0, 4))]
    away = denoise(sd15, 1.0, positive=positive) - denoise(other, 1.0, positive=positive)
    expected = denoise(sd15, positive=positive) + 2.0 * away
    assert nearly(denoise(weak(sd15, other), positive=positive), expected)


def test_weights_that_change_after_the_node_are_refused(sd15):
    late = weak(sd15, ip_adapter.apply(sd15))
    key = next(key for key in sd15.model.state_dict() if key.endswith("to_v.weight"))
    late.add_patches({key: (sd15.model.state_dict()[key],)}, 0.5)
    with pytest.raises(ValueError, match=r"Weak Model Guidance.*Put it before"):
        tiny_models.sample(late, (8, 8), steps=1)
    assert tiny_models.sample(sd15, (8, 8), steps=1).isfinite().all()


def test_a_lora_that_a_hook_brings_does_not_count_as_changed_weights(sd15):
    """One network for both: the weak model has neither the adapter nor the hook's LoRA."""
    comfy.model_management.unload_all_models()
    key = next(key for key in sd15.model.state_dict() if key.endswith("attn2.to_v.weight"))
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = {key: (sd15.model.state_dict()[key].flip(0).clone(),)}, False
    (group := comfy.hooks.HookGroup()).add(hook)
    x, positive = 3 * noise(8, 8), text(1, hooks=group)
    steered, strong = weak(ip_adapter.apply(sd15), sd15), ip_adapter.apply(sd15)
    (found,) = in_one_run(steered, [(x, 3.0)], positive=positive)
    plain, alone = (in_one_run(strong, [(x, 3.0)], cfg, positive=positive)[0] for cfg in (5.0, 1.0))
    assert nearly(found, plain + 2.0 * (alone - denoise(sd15, 1.0, x=x)))


@pytest.mark.parametrize("method", [tpg, swg, weak], ids=["tpg", "swg", "weak"])
def test_a_range_ends_where_it_says(method, sd15):
    sampling = sd15.get_model_object("model_sampling")
    for percent, inside in ((0.19, False), (0.2, True), (0.5, True), (0.51, False)):
        sigma = float(sampling.percent_to_sigma(percent))
        steered = method(sd15, start=0.2, end=0.5)
        assert torch.equal(denoise(steered, sigma=sigma), denoise(sd15, sigma=sigma)) != inside
