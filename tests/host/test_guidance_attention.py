"""Guidance inside the text attention (NAG, PLADIS), against the host's slots filled by hand."""

from __future__ import annotations

import comfy.hooks
import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from reins.engine.unet import find_transformers, unet_of
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.attention_by_hand import OVERRIDE
from reins.tests.helpers.methods import nag, pag, pladis
from reins.tests.helpers.predictions import conds, denoise, in_one_run
from reins.tests.helpers.references import entmax_by_bisection, nag_by_the_paper
from reins.tests.helpers.tiny_models import nearly, noise, text


def dense(q, k, v, heads):
    return optimized_attention(q, k, v, heads)


def extrapolated(scale):
    """PLADIS (equation 9 of 2503.07677) on q, k, v of (b, n, heads * d)."""

    def attend(q, k, v, heads):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        weights = scale * entmax_by_bisection(scores).to(q) + (1 - scale) * scores.softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    return attend


def by_hand(model, negative=None, attend=dense, settings=(2.0, 2.5, 0.5)):
    """The host's slots with an attention, which for positives (label 0) is guided away from one negative text."""
    model, unet = model.clone(), unet_of(model)
    for block in find_transformers(unet):
        own = unet.get_submodule(f"{block.path}.attn2")

        def slot(q, k, v, options, own=own):
            out, heads = list(attend(q, k, v, own.heads).chunk(len(options["cond_or_uncond"]))), own.heads
            for i, label in enumerate(options["cond_or_uncond"]):
                if label == 0 and negative is not None:
                    part = q.chunk(len(out))[i]
                    context = negative[0][0].to(q).expand(len(part), -1, -1)
                    away = attend(part, own.to_k(context), own.to_v(context), heads)
                    out[i] = nag_by_the_paper(out[i], away, *settings)
            return torch.cat(out)

        model.set_model_attn2_replace(slot, block.block, block.number, block.index)
    return model


NEGATIVE = text(3, tokens=9)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("settings", [(2.0, 2.5, 0.5), (8.0, 1.2, 1.0)])
def test_nag_guides_the_positive_away_inside_its_attention(model, cfg, settings):
    expected = denoise(by_hand(model, NEGATIVE, settings=settings), cfg, b=2)
    assert nearly(denoise(nag(model, NEGATIVE, *settings), cfg, b=2), expected)
    assert not nearly(denoise(model, cfg, b=2), expected, 1e-3)


def test_nag_leaves_the_negative_prediction_as_it_is(sd15):
    seen = []

    def look(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: (seen.append(args), args["denoised"])[1])
        return model

    denoise(look(nag(sd15, NEGATIVE)))
    denoise(look(sd15))
    assert nearly(seen[0]["uncond_denoised"], seen[1]["uncond_denoised"])
    assert not nearly(seen[0]["cond_denoised"], seen[1]["cond_denoised"], 1e-3)


def test_all_entries_of_nags_negative_count_by_their_strength(sd15):
    twice = [*text(3), *text(3)]
    assert nearly(denoise(nag(sd15, twice)), denoise(nag(sd15, text(3))))
    (first,), (other,) = text(3), text(4, tokens=9)
    both, weaker = [first, other], [first, [other[0], {**other[1], "strength": 0.25}]]
    found = [denoise(nag(sd15, one)) for one in (both, both[::-1], weaker, [first], [other])]
    assert nearly(found[0], found[1])
    assert all(not nearly(a, found[0], 1e-4) for a in found[2:])
    off = [first, [other[0], {**other[1], "strength": 0.0}]]
    assert nearly(denoise(nag(sd15, off)), found[3])


def test_a_masked_entry_of_nags_negative_acts_on_its_part(sd15):
    (first,) = text(3)
    half = torch.zeros((1, 96, 96))
    half[..., :48] = 1
    halves = [[first[0], {**first[1], "mask": half}], [first[0], {**first[1], "area": (12, 6, 0, 6)}]]
    assert nearly(denoise(nag(sd15, halves)), denoise(nag(sd15, text(3))), 1e-3)
    found = denoise(nag(sd15, halves[:1]))
    assert not nearly(found, denoise(nag(sd15, text(3))), 1e-3) and not nearly(found, denoise(sd15), 1e-3)


def test_an_entry_of_nags_negative_has_its_time(sd15):
    sampling = sd15.get_model_object("model_sampling")
    (first,) = text(3)
    late = [[first[0], {**first[1], "start_percent": 0.5, "end_percent": 1.0}]]
    for percent, expected in ((0.3, sd15), (0.7, nag(sd15, text(3)))):
        sigma = float(sampling.percent_to_sigma(percent))
        assert nearly(denoise(nag(sd15, late), sigma=sigma), denoise(expected, sigma=sigma))


def lora(model, share=0.5):
    """A patch on the keys and values of the text attention, and a model that has it in its weights."""
    comfy.model_management.unload_all_models()  # what is loaded has the patches of the test before
    names = [name for name in model.model.state_dict() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    patch = {name: (share * model.model.state_dict()[name].flip(0),) for name in names}
    merged = tiny_models.sd15(dtype=torch.float64)
    for name in names:
        own = merged.model.state_dict()[name]
        own.copy_(own + share * own.flip(0))
    return patch, merged


@pytest.mark.parametrize("before", [True, False])
def test_nag_reads_its_negative_with_the_loras_matrices(before, sd15):
    patch, merged = lora(sd15)
    if before:
        sd15.add_patches(patch)
    steered = nag(sd15, NEGATIVE)
    if not before:
        steered.add_patches(patch)
    assert nearly(denoise(steered), denoise(by_hand(merged, NEGATIVE)))


def test_nag_follows_a_lora_that_a_hook_brings_for_one_prompt(sd15):
    patch, merged = lora(sd15)
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = patch, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    (found,) = in_one_run(nag(sd15, NEGATIVE), [(3 * noise(8, 8), 3.0)], 1.0, positive=text(1, hooks=group))
    assert nearly(found, denoise(by_hand(merged, NEGATIVE), 1.0, x=3 * noise(8, 8)))


def test_what_an_ip_adapter_adds_is_not_pushed_away(sd15):
    expected = denoise(ip_adapter.apply(by_hand(sd15, NEGATIVE)))
    assert nearly(denoise(ip_adapter.apply(nag(sd15, NEGATIVE))), expected)
    assert nearly(denoise(nag(ip_adapter.apply(sd15), NEGATIVE)), expected)


def test_nag_acts_on_the_positives_of_extra_predictions(sd15):
    expected = denoise(pag(by_hand(sd15, NEGATIVE)))
    assert nearly(denoise(pag(nag(sd15, NEGATIVE))), expected)
    assert nearly(denoise(nag(pag(sd15), NEGATIVE)), expected)


@pytest.mark.parametrize(("cfg", "scale"), [(5.0, 2.0), (1.0, 1.0), (5.0, 0.5)])
def test_pladis_extrapolates_from_dense_to_sparse_in_every_prediction(model, cfg, scale):
    expected = denoise(by_hand(model, attend=extrapolated(scale)), cfg, b=2)
    assert nearly(denoise(pladis(model, scale), cfg, b=2), expected)
    assert not nearly(denoise(model, cfg, b=2), expected, 1e-4)


def test_pladis_leaves_an_ip_adapter_as_it_is(sd15):
    expected = denoise(ip_adapter.apply(by_hand(sd15, attend=extrapolated(2.0))))
    assert nearly(denoise(ip_adapter.apply(pladis(sd15))), expected)
    assert nearly(denoise(pladis(ip_adapter.apply(sd15))), expected)


def test_nag_pushes_between_sparse_attentions(sd15):
    expected = denoise(by_hand(sd15, NEGATIVE, extrapolated(2.0)))
    assert nearly(denoise(pladis(nag(sd15, NEGATIVE))), expected)
    assert nearly(denoise(nag(pladis(sd15), NEGATIVE)), expected)


def test_pladis_extrapolates_from_an_attention_that_another_pack_puts_in_place_of_the_hosts(sd15):
    """Other packs have two places for it: the slot of an attention, and the override of all attentions."""

    def halved(func, *args, **kwargs):
        return 0.5 * func(*args, **kwargs)

    slots, override = sd15.clone(), sd15.clone()
    for block in find_transformers(unet_of(sd15)):
        slots.set_model_attn2_replace(
            lambda q, k, v, options: 0.5 * dense(q, k, v, options["n_heads"]), block.block, block.number, block.index
        )
    override.model_options["transformer_options"][OVERRIDE] = halved
    expected = denoise(by_hand(sd15, attend=lambda q, k, v, heads: (
        extrapolated(2.0)(q, k, v, heads) - 0.5 * dense(q, k, v, heads)
    )))  # fmt: skip
    assert nearly(denoise(pladis(slots, 2.0)), expected)
    half_of_all = denoise(pladis(override, 2.0))
    assert not nearly(half_of_all, denoise(pladis(sd15, 2.0)))
    for block in find_transformers(unet_of(sd15)):
        slots.set_model_attn1_replace(
            lambda q, k, v, options: 0.5 * dense(q, k, v, options["n_heads"]), block.block, block.number, block.index
        )
    assert nearly(half_of_all, denoise(pladis(slots, 2.0)))


def test_nag_leaves_the_tensor_that_another_pack_keeps_as_it_was(sd15):
    """Only a result of the host itself is written into, for nobody else holds it."""
    kept = []

    def keep(q, k, v, options):
        out = dense(q, k, v, options["n_heads"])
        kept.append((out, out.clone()))
        return out

    other = sd15.clone()
    block = find_transformers(unet_of(sd15))[0]
    other.set_model_attn2_replace(keep, block.block, block.number, block.index)
    assert nearly(denoise(nag(other, NEGATIVE)), denoise(nag(sd15, NEGATIVE)))
    assert len(kept) == 2 and all(torch.equal(out, before) for out, before in kept)


def test_nag_has_gradients(sd15):
    """A node may ask for them in the sampling loop. Nothing is written into what they need."""
    x = (3 * noise(8, 8)).requires_grad_()
    found, expected = denoise(nag(sd15, NEGATIVE), x=x), denoise(by_hand(sd15, NEGATIVE), x=x)
    assert nearly(found.detach(), expected.detach())
    ours, by_formula = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    assert by_formula.any() and nearly(ours, by_formula)


@pytest.mark.parametrize("method", [nag, pladis])
def test_a_range_ends_where_it_says(method, sd15):
    sampling = sd15.get_model_object("model_sampling")
    for percent, inside in ((0.19, False), (0.2, True), (0.5, True), (0.51, False)):
        sigma = float(sampling.percent_to_sigma(percent))
        found = denoise(method(sd15, start=0.2, end=0.5), sigma=sigma, size=(8, 8))
        assert torch.equal(found, denoise(sd15, sigma=sigma, size=(8, 8))) != inside


@pytest.mark.parametrize("method", [nag, pladis])
def test_rows_of_a_step_stay_as_many(method, sd15):
    with tiny_models.forwards(sd15) as rows:
        denoise(method(sd15))
        denoise(method(sd15), 1.0)
    assert rows == [2, 1]


def test_a_row_of_the_batch_has_its_own_negative_where_there_are_several(sd15):
    x = 3 * noise(8, 8, b=2)
    two = [[torch.cat([text(3)[0][0], text(4)[0][0]]), {}]]
    found = denoise(nag(sd15, two), x=x)
    for i in range(2):
        alone = denoise(nag(sd15, text(3 + i)), x=x[i : i + 1])
        assert nearly(found[i : i + 1], alone)


def test_nag_gives_each_area_its_part_of_a_masked_negative(sd15):
    (first,) = text(3)
    left = torch.zeros((1, 12, 12))
    left[..., :6] = 1
    negative = [[first[0], {**first[1], "mask": left}]]
    x, crop = 3 * noise(12, 12), conds(1, area=(12, 6, 0, 0))
    alone = [{key: crop[0][key] for key in ("model_conds", "uuid")}]
    found = denoise(nag(sd15, negative), 1.0, x=x, positive=crop)
    expected = denoise(nag(sd15, text(3)), 1.0, x=x[..., :6], positive=alone)
    assert nearly(found[..., :4], expected[..., :4])  # towards the border the host fades the area out
