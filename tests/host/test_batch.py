"""How many rows the model sees, and that the result does not depend on how they are grouped."""

from __future__ import annotations

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from reins.tests.helpers import tiny_models
from reins.tests.helpers.conds import areas, controlled, controlled_together, hooked, masks
from reins.tests.helpers.methods import COVERED, METHODS, SEEN_WHOLE, fit, interval, pag, sag, seg
from reins.tests.helpers.other_packs import VERSION, hook_with, one_by_one, pass_through, regrouped, tiled, windows
from reins.tests.helpers.tiny_models import nearly, reads_per_step, sample, text

SLOT = "sampler_calc_cond_batch_function"


@pytest.mark.parametrize(
    ("steer", "cfg", "per_step"),
    [
        (pag, 5.0, [3]),
        (pag, 1.0, [2]),
        (lambda m: seg(pag(m)), 5.0, [4]),
        (lambda m: seg(pag(m)), 1.0, [3]),
        (sag, 5.0, [2, 1]),
        (sag, 1.0, [1, 1]),
        (lambda m: sag(pag(m)), 5.0, [3, 1]),
        (lambda m: pag(sag(m)), 1.0, [2, 1]),
        (lambda m: interval(m, 0.98, 0.99), 5.0, [1]),
        (lambda m: interval(pag(m), 0.98, 0.99), 5.0, [2]),
        (lambda m: interval(sag(m), 0.98, 0.99), 5.0, [1, 1]),
    ],
)
def test_rows_per_step(steer, cfg, per_step, model):
    with tiny_models.forwards(model) as rows:
        sample(steer(model), cfg=cfg, steps=3)
    assert rows == per_step * 3


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("earlier", [True, False], ids=["slot taken before", "slot taken after"])
def test_with_another_pack_in_the_slot_each_term_calls_the_model_itself(method, earlier, cfg, model):
    steered = method(pass_through(model)) if earlier else pass_through(method(model))
    assert nearly(sample(steered, cfg=cfg), sample(method(model), cfg=cfg))


def test_a_pack_that_wraps_our_slot_keeps_the_one_batch(model):
    ours = pag(model)
    inner = ours.model_options[SLOT]
    wrapped = ours.clone()
    wrapped.set_model_sampler_calc_cond_batch_function(lambda args: inner(args))
    with tiny_models.forwards(model) as rows:
        assert torch.equal(sample(seg(wrapped)), sample(seg(ours)))
    assert rows[:1] == [4]


@pytest.mark.parametrize("conds", [areas, masks], ids=["areas", "masks"])
@pytest.mark.parametrize("grouping", ["split", "slot taken"])
def test_areas_and_masks_work_however_the_rows_are_grouped(method, conds, grouping, sd15, monkeypatch):
    positive, negative = conds(1), conds(2)
    if conds is areas and method in [METHODS[name] for name in SEEN_WHOLE]:
        with pytest.raises(ValueError, match="area"):
            sample(method(sd15), positive=positive, negative=negative)
        return
    expected = sample(method(sd15), positive=positive, negative=negative)
    if grouping == "split":
        with tiny_models.little_memory(monkeypatch, sd15):
            found = sample(method(sd15), positive=positive, negative=negative)
    else:
        found = sample(method(pass_through(sd15)), positive=positive, negative=negative)
    assert nearly(found, expected)
    assert not nearly(found, sample(sd15, positive=positive, negative=negative), 1e-3)


@pytest.mark.parametrize("on", ["both", "positive"])
def test_a_control_net_steers_the_extra_predictions_too(method, on, sd15):
    positive, negative = controlled(1), controlled(2) if on == "both" else text(2)
    found = sample(method(sd15), positive=positive, negative=negative)
    assert nearly(found, sample(method(pass_through(sd15)), positive=positive, negative=negative))
    assert not nearly(found, sample(method(sd15)), 1e-3)


def test_the_residuals_of_a_shared_control_net_stay_with_their_rows(method, sd15):
    conds = controlled_together()
    with tiny_models.forwards(sd15) as rows:
        found = sample(method(sd15), **conds)
    assert nearly(found, sample(method(pass_through(sd15)), **conds))
    assert method is not METHODS["pag"] or rows[:1] == [3]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pack_that_sends_chunks_one_by_one_changes_nothing(method, batch, sd15):
    alone = regrouped(sd15, one_by_one)
    assert nearly(sample(method(alone), batch=batch), sample(method(sd15), batch=batch))


@pytest.mark.parametrize("name", ["pag", "seg"])
def test_under_a_tiling_pack_each_tile_is_steered(name, sd15):
    """The reference: the same tiles by hand, each with the layers of the extra prediction."""
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(text(1)[0][0])]
    negative = [tiny_models.cond(text(2)[0][0])]
    found = tiny_models.denoise(METHODS[name](regrouped(sd15, tiled)), x, 3.0, positive, negative, 5.0)
    tiles = [tiny_models.denoise(METHODS[name](sd15), tile, 3.0, positive, negative, 5.0) for tile in x.chunk(2, -1)]
    assert nearly(found, torch.cat(tiles, -1))


def test_under_a_tiling_pack_sag_says_what_it_needs(sd15):
    with pytest.raises(RuntimeError, match=r"whole picture, but another node cuts.*into tiles"):
        sample(METHODS["sag"](regrouped(sd15, tiled)))
    assert sample(METHODS["sag"](sd15)).isfinite().all()


def test_another_packs_slot_may_ask_ours_for_one_cond(method, sd15):
    steered = method(sd15)
    if SLOT not in steered.model_options:
        pytest.skip("rescale takes no slot")
    ours, asked = steered.model_options[SLOT], steered.clone()
    asked.set_model_sampler_calc_cond_batch_function(
        lambda args: [
            ours({**args, "conds": [args["conds"][0]]})[0],
            ours({**args, "conds": [None, args["conds"][1]]})[1],
        ]
    )
    if method is METHODS["interval"]:
        assert sample(asked).isfinite().all()
    else:
        assert nearly(sample(asked), sample(steered))


def test_the_order_of_several_conds_is_without_effect(method, sd15):
    positive, negative = text(1) + text(11), text(2) + text(12)
    forth = sample(method(sd15), positive=positive, negative=negative)
    back = sample(method(sd15), positive=positive[::-1], negative=negative[::-1])
    assert nearly(back, forth)


def test_prompts_of_different_length_share_a_run(method, sd15):
    positive, negative = text(1, tokens=10), text(2, tokens=5)
    found = sample(method(sd15), positive=positive, negative=negative)
    assert nearly(found, sample(method(pass_through(sd15)), positive=positive, negative=negative))


def test_conds_with_hooks_keep_them_in_the_extra_predictions(method, sd15):
    positive = hooked(1, 0.5)
    found = sample(method(sd15), positive=positive)
    assert nearly(found, sample(method(pass_through(sd15)), positive=positive))
    assert not nearly(found, sample(method(sd15)), 1e-3)


def test_a_hook_that_brings_the_list_a_second_time_changes_nothing(method, sd15):
    steered = method(sd15)
    group = hook_with(steered)
    found = sample(steered, positive=text(1, hooks=group), negative=text(2, hooks=group))
    assert nearly(found, sample(steered))


def test_other_packs_see_the_extra_chunks_as_positives_behind_the_others(sd15):
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(args[5]["cond_or_uncond"])
        return executor(*args, **kwargs)

    steered = seg(pag(sd15))
    steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", look)
    sample(steered, steps=1 + 1)
    assert seen == [[1, 0, 0, 0]] * 2


def test_the_hosts_nag_keeps_its_effect(method, sd15):
    nag = pytest.importorskip("comfy_extras.nodes_nag").NAGuidance
    with_nag = nag.execute(sd15, 5.0, 0.5, 1.5).result[0]
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(text(1)[0][0])]
    negative = [tiny_models.cond(text(2)[0][0])]
    merged = tiny_models.denoise(method(with_nag), x, 3.0, positive, negative, 5.0)
    separate = tiny_models.denoise(method(pass_through(with_nag)), x, 3.0, positive, negative, 5.0)
    assert nearly(merged, separate)
    assert not nearly(merged, tiny_models.denoise(method(sd15), x, 3.0, positive, negative, 5.0), 1e-3)


@pytest.mark.parametrize("name", ["pag", "seg", "sag"])
def test_perp_neg_adds_each_term_for_the_positive_once(name, sd15):
    method, seen = METHODS[name], []
    guider = Guider_PerpNeg(watched(method(sd15), seen))
    guider.set_conds(text(1), text(2), text(3))
    guider.set_cfg(4.0, 0.7)
    tiny_models.guide(sd15, guider, steps=2)
    check_terms(name, sd15, seen)


@pytest.mark.parametrize("name", ["pag", "seg", "sag"])
@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_adds_each_term_for_the_cond_of_its_post_cfg_once(name, style, sd15):
    method, seen = METHODS[name], []
    guider = Guider_DualCFG(watched(method(sd15), seen))
    guider.set_conds(text(1), text(2), text(3))
    guider.set_cfg(4.0, 2.0, nested=style == "nested")
    tiny_models.guide(sd15, guider, steps=2)
    check_terms(name, sd15, seen)


def watched(steered, seen):
    """Note what goes into the chain of post-CFG functions and what comes out."""
    steered = steered.clone()
    chain = steered.model_options["sampler_post_cfg_function"]
    steered.model_options["sampler_post_cfg_function"] = [
        lambda args: (seen.append([args, args["denoised"]]), args["denoised"])[1],
        *chain,
        lambda args: (seen[-1].append(args["denoised"]), args["denoised"])[1],
    ]
    return steered


def check_terms(name, plain, seen):
    """What a term added equals its effect on the same conds under plain CFG."""
    assert len(seen) == 2
    assert not nearly(seen[0][2], seen[0][1], 1e-3)
    for args, before, after in seen:
        negative = args["uncond"] if name == "sag" else None
        cfg = 2.0 if negative else 1.0
        x, sigma, cond = args["input"], float(args["sigma"][0]), args["cond"]
        steered, unsteered = (
            tiny_models.denoise(m, x, sigma, cond, negative, cfg) for m in (METHODS[name](plain), plain)
        )
        assert nearly(after, before + (steered - unsteered))


def test_all_nodes_together_read_one_number_per_step(sd15):
    steered = sd15
    for method in (METHODS[name] for name in COVERED):
        steered = method(steered)

    def perp_neg(model, steps):
        guider = Guider_PerpNeg(model)
        guider.set_conds(text(1), text(2), text(3))
        guider.set_cfg(4.0, 0.7)
        return tiny_models.guide(model, guider, steps=steps)

    for run in (lambda model, steps: sample(model, steps=steps), perp_neg):
        plain = reads_per_step(lambda steps, run=run: run(sd15, steps))
        assert reads_per_step(lambda steps, run=run: run(steered, steps)) - plain <= 1


def test_a_guider_without_a_negative_works(method, sd15):
    guider = Guider_Basic(method(sd15))
    guider.set_conds(text(1))
    assert nearly(*(tiny_models.guide(sd15, of) for of in (guider, cfg_guider(method(sd15), 1.0))))


def cfg_guider(model, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text(1), text(2))
    guider.set_cfg(cfg)
    return guider


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
@pytest.mark.parametrize("order", ["windows first", "windows last"])
def test_context_windows_give_what_single_pictures_give(method, order, sd15):
    """The pictures of this model do not see each other, so windows over the batch must not change them."""
    size, start = (10, 10), tiny_models.noise(10, 10, b=6)
    method = fit(method, size)
    steered = method(windows(sd15)) if order == "windows first" else windows(method(sd15))
    found, expected = (sample(m, size, batch=6, start=start) for m in (steered, method(sd15)))
    assert nearly(found, expected)
