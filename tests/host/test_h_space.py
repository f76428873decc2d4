"""Edits of h in the sampling loop: the paper's step by hand, neighbours, grouping of rows, and what it costs."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from contextlib import nullcontext
from itertools import pairwise
from unittest import mock

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from reins.engine.rows.groups import GROUPS
from reins.engine.run import RUN
from reins.models.h_space.steps import effective_factor, levels_of_step
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.nodes.h_space import direction as direction_module
from reins.nodes.h_space import edit as module
from reins.tests.helpers import controlnext, h_space, tiny_models, unicon
from reins.tests.helpers.conds import controlled, controlled_together, hooked
from reins.tests.helpers.h_space import along, asyrp, by_hand, edit, live, of, patched, run, stored
from reins.tests.helpers.methods import interval, pag, rescale
from reins.tests.helpers.other_packs import VERSION, hook_with, pass_through, windows
from reins.tests.helpers.tiny_models import nearly, reads_per_step, text
from torch.nn import functional

ONE = stored(sigmas=(1.0,))  # one direction for all noise levels
DIRECTIONS = {"stored": stored(), "block": h_space.block(), "live": live()}
FLOW_ROUNDING = 1e-4  # the latents are in single precision, and this model magnifies that
STEP = torch.tensor([9.0, 3.0])
MASKS = torch.rand((2, 20, 24), generator=torch.Generator().manual_seed(3))
_FOUND = {}


@pytest.fixture(params=DIRECTIONS)
def direction(request):
    return DIRECTIONS[request.param]


def usual(model, direction, mode="asymmetric"):
    """The run with an edit of the whole of it; of each once."""
    key = (id(model.model), direction, mode)
    if key not in _FOUND:
        _FOUND[key] = run(edit(model, direction, mode=mode))
    return _FOUND[key]


def mask_rows(mask, h):
    return functional.interpolate(mask[:, None], size=h.shape[-2:], mode="bilinear").to(h)


# --- the paper's step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize(("sampler", "eta"), [("euler", 0.0), ("ddim", 0.0), ("euler_ancestral", 1.0)])
def test_the_asymmetric_edit_is_the_papers_step(sampler, eta, cfg, model):
    levels = torch.tensor([9.0, 3.0, 1.0, 0.0])
    expected = run(model, by_hand(along(ONE), eta), cfg, levels)
    assert nearly(run(edit(model, ONE), sampler, cfg, levels), expected)
    if cfg == 5.0:
        assert not nearly(run(edit(model, ONE, mode="symmetric"), sampler, cfg, levels), expected, 1e-2)


@pytest.mark.parametrize("settings", ["cond", "absolute", "absolute cond", "backwards", "pooled"])
def test_settings_of_the_edit_are_those_of_the_step(settings, sd15):
    direction, strength, labels, relative = ONE, 0.5, (0, 1), "absolute" not in settings
    if "cond" in settings:
        labels = (0,)
    if settings == "backwards":
        strength = -0.5
    if settings == "pooled":
        direction = stored(size=(1, 1), sigmas=(1.0,))
    found = edit(sd15, direction, strength, apply_to="cond" if labels == (0,) else "both", relative=relative)
    assert nearly(run(found), run(sd15, by_hand(along(direction, strength, relative, labels))))


def test_at_each_step_the_direction_is_that_of_its_noise_level(sd15):
    direction, levels, now = stored(sigmas=(10.0, 1.0)), torch.tensor([20.0, 6.0, 2.0, 0.5, 0.2]), []
    high, low = direction.directions.dh

    def change(h, label, options):
        place = now[-1].log10().clamp(0, 1).to(h)
        return 0.5 * (place * high + (1 - place) * low).to(h)

    expected = run(sd15, by_hand(change, before=lambda guider, x, level, options: now.append(level[0])), sigmas=levels)
    assert nearly(run(edit(sd15, direction, relative=False), sigmas=levels), expected)


@pytest.mark.parametrize("time", [True, False], ids=["time", "no time"])
@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
def test_a_delta_block_reads_h_and_the_models_time(layout, time, model):
    weights, embeddings = h_space.golden(f"block.{layout}"), []

    def norm(name, values, eps):
        return functional.group_norm(values, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def conv(name, values):
        return functional.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def change(h, label, options):
        count, index = len(options["cond_or_uncond"]), options["cond_or_uncond"].index(label)
        emb, inner = embeddings[-1].float().chunk(count)[index], h.float()
        name = "temb_proj" if layout == "ddpm" else "emb_layers.1"
        shift = functional.linear(functional.silu(emb), weights[f"{name}.weight"], weights[f"{name}.bias"])
        shift = shift[:, :, None, None] * time
        if layout == "ddpm":
            found = conv("conv2", functional.silu(norm("norm2", conv("conv1", inner) + shift, 1e-6)))
        else:
            inner = conv("in_layers.2", functional.silu(norm("in_layers.0", inner, 1e-5))) + shift
            found = conv("out_layers.3", functional.silu(norm("out_layers.0", inner, 1e-5)))
        return 0.5 * found.to(h)

    def stretch(emb, width, options):
        """As another pack would."""
        embeddings.append(1.1 * emb)
        return embeddings[-1]

    stretched = model.clone()
    stretched.set_model_emb_patch(stretch)
    expected = run(stretched, by_hand(change))
    assert nearly(run(edit(stretched, h_space.block(layout, time), relative=False)), expected)


@pytest.mark.parametrize("images", [1, 2])
def test_a_mask_says_where_h_is_edited(images, sd15):
    start, mask = h_space.noise(2), MASKS[:images]

    def change(h, label, options):
        return along(ONE)(h, label, options) * mask_rows(mask, h)

    found = run(edit(sd15, ONE, mask=mask), start=start)
    assert nearly(found, run(sd15, by_hand(change), start=start))
    for i in range(2):
        alone = edit(sd15, ONE, mask=mask[min(i, images - 1)][None])
        assert nearly(found[i : i + 1], run(alone, start=start[i : i + 1]))


def test_a_prompt_of_an_area_sees_its_part_of_direction_and_mask(sd15):
    """One prediction: inside the area it is that of a smaller picture with those parts."""
    whole = stored(size=(16, 16), sigmas=(1.0,))
    x, embedding, mask = 3 * tiny_models.noise(), text(1)[0][0], MASKS[:1, :16, :16]
    part = of(whole.directions.dh[..., 8:])
    area = tiny_models.cond(embedding, area=(16, 8, 0, 8))
    for settings, of_part in (({}, {}), ({"mask": mask}, {"mask": mask[..., 8:]})):
        found = tiny_models.denoise(edit(sd15, whole, **settings), x, 3.0, [area], None, 1.0)[..., 8:]
        alone = edit(sd15, part, **of_part)
        assert nearly(found, tiny_models.denoise(alone, x[..., 8:], 3.0, [tiny_models.cond(embedding)], None, 1.0))
        squeezed = edit(sd15, whole, **settings)
        assert not nearly(
            found, tiny_models.denoise(squeezed, x[..., 8:], 3.0, [tiny_models.cond(embedding)], None, 1.0), 1e-3
        )


def test_two_areas_of_one_size_see_different_parts(sd15):
    whole = stored(size=(16, 16), sigmas=(1.0,))
    x, embedding = 3 * tiny_models.noise(), text(1)[0][0]
    both = [tiny_models.cond(embedding, area=(16, 8, 0, left)) for left in (0, 8)]
    found = tiny_models.denoise(edit(sd15, whole), x, 3.0, both, None, 1.0)
    for left in (0, 8):
        columns = slice(left, left + 8)
        part = edit(sd15, of(whole.directions.dh[..., columns]))
        assert nearly(
            found[..., columns],
            tiny_models.denoise(part, x[..., columns], 3.0, [tiny_models.cond(embedding)], None, 1.0),
        )


def test_conds_of_areas_are_edited_however_they_are_grouped(direction, sd15, monkeypatch):
    conds = {"positive": text(1, area=(8, 5, 0, 0)) + text(11, area=(8, 5, 0, 3), strength=0.6), "sigmas": STEP}
    found = run(edit(sd15, direction, mask=MASKS[:1]), **conds)
    assert nearly(run(edit(pass_through(sd15), direction, mask=MASKS[:1]), **conds), found)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(run(edit(sd15, direction, mask=MASKS[:1]), **conds), found)
    assert not nearly(run(sd15, **conds), found, 1e-3)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.FLOW])
def test_with_ancestral_noise_the_factor_is_that_of_the_hosts_own_step(kind, eta):
    """By the host's function alone: what a change of its denoised picture does, and what that of the paper does."""
    sampling = tiny_models.sd15(kind=kind).get_model_object("model_sampling")
    is_flow = kind is ModelType.FLOW
    sigmas = torch.tensor([0.9, 0.7, 0.4, 0.0] if is_flow else [9.0, 4.0, 1.5, 0.0], dtype=torch.float64)
    pictures = torch.randn((2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def sampled(edited, start, sigmas):
        """By one step of the host's function."""
        inner = mock.Mock(spec=[])
        inner.inner_model = mock.Mock()
        inner.inner_model.inner_model.model_sampling = sampling
        inner.inner_model.model_patcher.get_model_object.return_value = sampling
        stub = lambda x, sigma, **_: edited  # noqa: E731
        stub.inner_model = inner.inner_model
        return k_diffusion.sample_euler_ancestral(
            stub, start, sigmas, {"seed": 3}, disable=True, eta=eta, noise_sampler=lambda *_: torch.zeros_like(start)
        )

    plain, edited = pictures
    start = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for now, following in pairwise(sigmas.tolist()):
        step = torch.tensor([now, following], dtype=torch.float64)
        levels = levels_of_step(now, following, eta, is_flow)
        effective = plain + effective_factor(now, levels.down, is_flow) * (edited - plain)
        expected = sampled(plain, start, step)
        if is_flow:
            kept = (1 - following) / (1 - levels.down) if following else 1.0
            expected = expected + kept * (1 - levels.down) * (edited - plain)
        else:
            expected = expected + (edited - plain)
        assert nearly(sampled(effective, start, step), expected, 1e-6)


def test_a_flow_model_takes_the_step_too():
    """x = (1 - sigma) picture + sigma noise, of which the edited picture replaces the plain one."""
    model = tiny_models.sd15(kind=ModelType.FLOW, dtype=torch.float64)

    def loop(model, x, sigmas, extra_args, callback, disable):
        options = patched(extra_args["model_options"], along(ONE))
        for now, following in pairwise(sigmas.tolist()):
            level = x.new_full([len(x)], now)
            plain = model(x, level, **extra_args)
            edited = model(x, level, **{**extra_args, "model_options": options})
            noise = (x - (1 - now) * plain) / now
            x = (1 - following) * edited + following * noise
        return x

    expected = run(model, KSAMPLER(loop), sigmas=h_space.FLOW)
    assert nearly(run(edit(model, ONE), sigmas=h_space.FLOW), expected, FLOW_ROUNDING)
    assert nearly(run(model, asyrp(ONE), sigmas=h_space.FLOW), expected, FLOW_ROUNDING)
    assert not nearly(run(model, sigmas=h_space.FLOW), expected, 0.1)


def test_upwards_the_step_is_the_papers_too(sd15):
    """As samplings that noise a picture again do; by Euler."""
    sigmas = torch.tensor([0.5, 2.0, 9.0])
    assert nearly(run(edit(sd15, ONE), sigmas=sigmas), run(sd15, by_hand(along(ONE)), sigmas=sigmas))


def test_a_step_of_no_length_does_no_harm(sd15):
    twice, once = torch.tensor([9.0, 3.0, 3.0, 1.0]), torch.tensor([9.0, 3.0, 1.0])
    assert nearly(run(edit(sd15, ONE), sigmas=twice), run(edit(sd15, ONE), sigmas=once))


def test_a_part_of_the_picture_is_drawn_anew_by_ddim(sd15):
    mask = (MASKS[:1, :8, :8] > 0.4).float()[:, None]
    latent = h_space.noise(seed=4)
    settings = {"mask": mask, "latent": latent}
    expected = run(sd15, by_hand(along(ONE), random=True), **settings)
    assert nearly(run(edit(sd15, ONE), "ddim", **settings), expected)


# --- symmetric edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "apply_to"), [("euler", "both"), ("euler", "cond"), ("dpmpp_2m", "both"), ("heun", "cond")]
)
def test_a_symmetric_edit_is_a_patch_of_every_prediction(sampler, apply_to, sd15, caplog):
    caplog.set_level(logging.INFO)
    labels = (0, 1) if apply_to == "both" else (0,)
    plain = sd15.clone()
    plain.model_options = patched(plain.model_options, along(ONE, labels=labels))
    expected = run(plain, sampler)
    assert nearly(run(edit(sd15, ONE, mode="symmetric", apply_to=apply_to), sampler), expected)
    assert "H-Space Edit" not in caplog.text  # it was asked for
    automatic = run(edit(sd15, ONE, apply_to=apply_to), sampler)
    assert nearly(automatic, expected) == (sampler != "euler")
    words = "is asymmetric, as in the paper" if sampler == "euler" else f"symmetric here .* sampler sample_{sampler} "
    (said,) = [record for record in caplog.records if "H-Space Edit" in record.getMessage()]
    assert said.levelname == ("INFO" if sampler == "euler" else "WARNING")
    assert re.search(words, said.getMessage())


def test_euler_with_churn_is_no_plain_step(sd15, caplog):
    churned = comfy.samplers.ksampler("euler", {"s_churn": 0.5})
    run(edit(sd15, ONE), churned)
    assert "symmetric here" in caplog.text


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_factor_follows_the_eta_of_the_sampler(eta, sd15):
    ancestral = comfy.samplers.ksampler("euler_ancestral", {"eta": eta})
    assert nearly(run(edit(sd15, ONE), ancestral), run(sd15, by_hand(along(ONE), eta)))


def test_without_a_sampler_h_is_edited_in_silence(sd15, caplog):
    x, conds = 3 * tiny_models.noise(), [tiny_models.cond(text(1)[0][0])]
    found = tiny_models.denoise(edit(sd15, ONE), x, 3.0, conds, None, 1.0)
    assert nearly(found, tiny_models.denoise(edit(sd15, ONE, mode="symmetric"), x, 3.0, conds, None, 1.0))
    assert "H-Space" not in caplog.text and not nearly(found, tiny_models.denoise(sd15, x, 3.0, conds, None, 1.0), 1e-3)


@pytest.mark.parametrize("apply_to", ["both", "cond"])
def test_a_symmetric_edit_acts_on_extra_predictions_as_on_the_positive(apply_to, sd15):
    """What PAG takes away is perturbed and edited."""
    labels = (0, 1) if apply_to == "both" else (0,)
    plain = pag(sd15)
    plain.model_options = patched(plain.model_options, along(ONE, labels=labels))
    assert nearly(run(edit(pag(sd15), ONE, mode="symmetric", apply_to=apply_to)), run(plain))


# --- rows and grouping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "cfg", "rows"),
    [
        ({}, 5.0, [4]),
        ({"apply_to": "cond"}, 5.0, [3]),
        ({}, 1.0, [2]),
        ({"mode": "symmetric"}, 5.0, [2]),
        ({"direction": "live"}, 5.0, [6]),
        ({"direction": "live"}, 1.0, [4]),
        ({"direction": "live", "mode": "symmetric"}, 5.0, [2, 2]),
        ({"direction": "block"}, 5.0, [4]),
    ],
    ids=str,
)
def test_rows_per_step(settings, cfg, rows, model):
    settings = {**settings, "direction": DIRECTIONS[settings.get("direction", "stored")]}
    with tiny_models.forwards(model) as found:
        run(edit(model, **settings), cfg=cfg)
    assert found == rows * 2


def test_outside_of_the_range_nothing_is_paid_and_no_bit_is_changed(sd15):
    late = edit(sd15, live(), start=0.9, end=0.95)
    with tiny_models.forwards(sd15) as rows:
        assert torch.equal(run(late), run(sd15))
    assert set(rows) == {2}
    with tiny_models.forwards(sd15) as rows:
        run(edit(sd15, ONE, end=0.5), sigmas=torch.tensor([9.0, 4.0, 0.6, 0.3, 0.0]))
    assert rows == [4, 4, 2, 2]
    assert edit(sd15, ONE, strength=0.0) is sd15


EACH = [("stored", "asymmetric"), ("block", "asymmetric"), ("live", "asymmetric"), ("live", "symmetric")]


@pytest.mark.parametrize(("name", "mode"), EACH)
def test_a_batch_of_two_is_two_of_one(name, mode, sd15):
    steered, start = edit(sd15, DIRECTIONS[name], mode=mode), tiny_models.noise(8, 12, b=2)
    both = run(steered, start=start, sigmas=STEP)
    for i in range(2):
        assert nearly(run(steered, start=start[i : i + 1], sigmas=STEP)[0], both[i])


@pytest.mark.parametrize(("name", "mode"), EACH)
def test_split_batches_give_the_same(name, mode, model, monkeypatch):
    expected = usual(model, DIRECTIONS[name], mode)
    with tiny_models.little_memory(monkeypatch, model), tiny_models.forwards(model) as rows:
        assert nearly(run(edit(model, DIRECTIONS[name], mode=mode)), expected)
    assert set(rows) == {1}


@pytest.mark.parametrize(("name", "mode"), EACH)
def test_with_another_pack_in_the_slot_the_edit_calls_the_model_itself(name, mode, sd15):
    direction = DIRECTIONS[name]
    expected = usual(sd15, direction, mode)
    assert nearly(run(edit(pass_through(sd15), direction, mode=mode)), expected)
    later = pass_through(edit(sd15, direction, mode=mode))
    if mode == "symmetric":
        with pytest.raises(RuntimeError, match="has to be found before the step"):
            run(later)
    else:
        assert nearly(run(later), expected)


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
@pytest.mark.parametrize(("name", "mode"), EACH)
def test_context_windows_give_what_single_pictures_give(name, mode, sd15):
    steered = edit(sd15, DIRECTIONS[name], mode=mode, mask=torch.cat([MASKS, MASKS.flip(-1)]))
    start = {"start": h_space.noise(6), "sigmas": STEP}
    assert nearly(run(windows(steered), **start), run(steered, **start))


def test_a_step_reads_one_number_from_the_device(sd15):
    steered = edit(edit(sd15, live(), end=0.8, mask=MASKS), ONE, start=0.1)
    plain, edited = (
        reads_per_step(lambda steps, model=model: run(model, sigmas=torch.linspace(9, 1, steps + 1)))
        for model in (sd15, edit(steered, h_space.block()))
    )
    assert edited - plain <= 1


# --- several edits, and other methods --------------------------------------------------------------------------------


def test_two_edits_share_their_prediction_and_add_up(sd15):
    first, second = stored(1, sigmas=(1.0,)), stored(2, sigmas=(1.0,))
    (a,), (b,) = first.directions.dh, second.directions.dh
    both = edit(edit(sd15, first, 0.5, relative=False), second, -0.7, relative=False)
    with tiny_models.forwards(sd15) as rows:
        found = run(both)
    assert rows == [4] * 2
    assert nearly(found, run(edit(sd15, of((0.5 * a - 0.7 * b)[None]), 1.0, relative=False)))
    swapped = edit(edit(sd15, second, -0.7, relative=False), first, 0.5, relative=False)
    assert nearly(run(swapped), found)


def test_two_edits_of_different_ranges_and_prompts(sd15):
    """One on both in the first part, one on the positive in the second; between them both act."""
    first, second = stored(1, sigmas=(1.0,)), stored(2, sigmas=(1.0,))
    levels = torch.tensor([9.0, 2.0, 0.6, 0.0])
    edits = [(first, {"end": 0.5}), (second, {"start": 0.3, "apply_to": "cond"})]  # above 1.6; below 4.1
    forth, back = sd15, sd15
    for (one, settings), (other, of_other) in zip(edits, edits[::-1], strict=True):
        forth, back = edit(forth, one, **settings), edit(back, other, **of_other)
    now = []

    def change(h, label, options):
        sigma = now[-1]
        found = along(first)(h, label, options) * (sigma > 1.6)
        return found + along(second, labels=(0,))(h, label, options) * (sigma < 4.1)

    before = lambda guider, x, level, options: now.append(float(level[0]))  # noqa: E731
    expected = run(sd15, by_hand(change, before=before), sigmas=levels)
    with tiny_models.forwards(sd15) as rows:
        assert nearly(run(forth, sigmas=levels), expected)
    assert rows == [4, 4, 3]
    assert nearly(run(back, sigmas=levels), expected)


def test_one_direction_of_prompts_may_be_used_twice(sd15):
    """Stronger in the second part of the run, by two nodes."""
    shared, levels = live(), torch.tensor([9.0, 2.0, 0.6, 0.0])
    twice = edit(edit(sd15, shared, 0.3, end=0.3), shared, 0.6, start=0.31)  # above 4.1; below 3.9
    apart = edit(edit(sd15, live(), 0.3, end=0.3), live(), 0.6, start=0.31)
    expected = run(apart, sigmas=levels)
    assert nearly(run(twice, sigmas=levels), expected)
    assert not nearly(run(edit(sd15, shared, 0.3, end=0.3), sigmas=levels), expected, 1e-3)
    symmetric = edit(edit(sd15, shared, 0.3, end=0.3, mode="symmetric"), shared, 0.6, start=0.31)
    apart = edit(edit(sd15, live(), 0.3, end=0.3, mode="symmetric"), live(), 0.6, start=0.31)
    assert nearly(run(symmetric, sigmas=levels), run(apart, sigmas=levels))


@pytest.mark.parametrize("other", [pag, lambda model: pag(rescale(model))], ids=["pag", "pag after rescale"])
def test_guidance_after_cfg_reads_the_plain_prediction(other, sd15):
    """The effect of both is the sum of what each adds to the plain result, in whatever order the nodes are."""
    seen = []

    def watch(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: (seen.append(args["denoised"]), args["denoised"])[1])
        return model

    levels = torch.tensor([9.0, 2.0])
    for steered in (sd15, other(sd15), edit(sd15, ONE), edit(other(sd15), ONE)):
        run(watch(steered), sigmas=levels)
    plain, guided, edited, both = seen
    assert nearly(both - plain, (guided - plain) + (edited - plain), 1e-4)


def test_a_cfg_function_of_another_pack_combines_the_edited_predictions_too(sd15):
    """Like the host's RescaleCFG."""
    sd15 = sd15.clone()
    sd15.set_model_sampler_cfg_function(lambda args: args["uncond"] + (args["cond"] - args["uncond"]).tanh() * 3.0)
    assert nearly(run(edit(sd15, ONE)), run(sd15, by_hand(along(ONE))))


def test_where_an_interval_turns_cfg_off_the_positives_change_counts_once(sd15):
    limited = interval(sd15, 0.98, 0.99)
    assert nearly(run(edit(limited, ONE)), run(sd15, by_hand(along(ONE)), cfg=1.0))
    assert nearly(run(interval(edit(sd15, ONE), 0.98, 0.99)), run(sd15, by_hand(along(ONE)), cfg=1.0))


def test_the_residual_of_a_control_net_is_a_part_of_h(sd15):
    for conds in (controlled_together(), {"positive": controlled(1)}):
        found = run(edit(sd15, ONE), **conds)
        assert nearly(found, run(sd15, by_hand(along(ONE)), **conds))
        assert not nearly(found, run(edit(sd15, ONE)), 1e-3)


def test_the_condition_beside_the_image_keeps_its_h(sd15):
    partnered = unicon.apply(sd15, partner=unicon.latent((8, 8)))

    def change(h, label, options):
        """Called for all rows of a label at once: image and condition."""
        raise AssertionError

    def patch(h, skip, options):
        if options["block"] != ("output", 0):
            return h, skip
        parts = h.chunk(len(options[GROUPS]))
        return torch.cat([
            part + along(ONE)(part, 0, options) * group.is_open
            for part, group in zip(parts, options[GROUPS], strict=True)
        ]), skip  # fmt: skip

    def loop(model, x, sigmas, extra_args, callback, disable):
        options = patched(extra_args["model_options"], change)
        options["transformer_options"]["patches"]["output_block_patch"][-1] = patch
        for now, following in pairwise(sigmas.tolist()):
            level = x.new_full([len(x)], now)
            plain = model(x, level, **extra_args)
            edited = model(x, level, **{**extra_args, "model_options": options})
            x = edited + following * (x - plain) / now
        return x

    expected = run(partnered, KSAMPLER(loop))
    assert nearly(run(edit(partnered, ONE)), expected)
    assert nearly(run(unicon.apply(edit(sd15, ONE), partner=unicon.latent((8, 8)))), expected)
    assert run(edit(partnered, live())).isfinite().all()


def test_the_edited_negative_is_a_negative_to_other_methods(sd15):
    """Here to one that leaves the negative alone."""
    beside = ControlNeXtApply.execute(
        sd15, controlnext.control(sd15), controlnext.picture(1), uncond="cond only"
    ).result[0]
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(args[5]["cond_or_uncond"])
        return executor(*args, **kwargs)

    steered = edit(beside, ONE)
    steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", look)
    assert nearly(run(steered), run(beside, by_hand(along(ONE))))
    assert seen == [[1, 1, 0, 0]] * 2  # all negatives come first


def test_what_is_kept_within_a_step_stays_beside_an_edit(sd15, monkeypatch):
    """ControlNeXt and an edit both keep something; neither may make the other forget, in however many calls."""
    made = controlnext.control(sd15)
    steered = edit(ControlNeXtApply.execute(sd15, made, controlnext.picture(1)).result[0], ONE)
    calls, gridded = [], mock.Mock(wraps=direction_module.change_on_grid)
    monkeypatch.setattr(direction_module, "change_on_grid", gridded)
    hook = made.network.model.register_forward_hook(lambda *_: calls.append(1))
    with tiny_models.little_memory(monkeypatch, sd15):
        run(steered)
    hook.remove()
    assert len(calls) == gridded.call_count == 2


def test_conds_with_hooks_keep_them_in_the_edited_predictions(sd15):
    conds = {"positive": hooked(1, 0.5)}
    assert nearly(run(edit(sd15, ONE), **conds), run(sd15, by_hand(along(ONE)), **conds))
    found = run(edit(sd15, DIRECTIONS["live"]), **conds)
    assert nearly(found, run(edit(pass_through(sd15), DIRECTIONS["live"]), **conds))
    assert not nearly(found, usual(sd15, DIRECTIONS["live"]), 1e-3)


def test_a_hook_that_brings_the_list_a_second_time_changes_nothing(direction, sd15):
    steered = edit(sd15, direction)
    group = hook_with(steered)
    conds = {"positive": text(1, hooks=group), "negative": text(2, hooks=group)}
    assert nearly(run(steered, **conds), usual(sd15, direction))


# --- guiders ---------------------------------------------------------------------------------------------------------


def perp_neg(model):
    guider = Guider_PerpNeg(model)
    guider.set_conds(text(1), text(2), text(3))
    guider.set_cfg(4.0, 0.7)
    return guider, 4.0


def dual(model, nested=False):
    guider = Guider_DualCFG(model)
    guider.set_conds(text(1), text(2), text(3))
    guider.set_cfg(4.0, 2.0, nested=nested)
    return guider, 4.0 if nested else 2.0


GUIDERS = {"perp-neg": perp_neg, "dual": dual, "nested": lambda model: dual(model, nested=True)}


@pytest.mark.parametrize(("name", "labels"), [("perp-neg", (0,)), ("dual", (1, 2))])
def test_a_symmetric_edit_of_the_positive_knows_the_negative_by_its_name(name, labels, sd15):
    """Other guiders number their conds as they like."""
    plain = sd15.clone()
    plain.model_options = patched(plain.model_options, along(ONE, labels=labels))
    expected = run(sd15, guider=GUIDERS[name](plain)[0], sigmas=STEP)
    steered = edit(sd15, ONE, mode="symmetric", apply_to="cond")
    assert nearly(run(sd15, guider=GUIDERS[name](steered)[0], sigmas=STEP), expected)


@pytest.mark.parametrize(
    ("name", "of"), [("perp-neg", "live"), ("perp-neg", "block"), ("dual", "live"), ("nested", "stored")]
)
def test_other_guiders_are_given_what_the_edit_changes_in_cfg(name, of, sd15):
    """Of the two conds and the scale that the guider hands to what comes after its guidance."""
    seen, direction = [], DIRECTIONS[of]
    steered = edit(sd15, direction)
    chain = steered.model_options["sampler_post_cfg_function"]
    steered.model_options["sampler_post_cfg_function"] = [
        lambda args: (seen.append([args, args["denoised"]]), args["denoised"])[1],
        *chain,
        lambda args: (seen[-1].append(args["denoised"]), args["denoised"])[1],
    ]
    guider, scale = GUIDERS[name](steered)
    run(steered, guider=guider, sigmas=STEP)
    ((_, before, after),) = seen
    denoised = []
    for model in (edit(sd15, direction), sd15):  # the same conds under the host's own guider

        def look(args):
            denoised.append(args["denoised"])
            return args["denoised"]

        watched = model.clone()
        watched.set_model_sampler_post_cfg_function(look)
        pair = {"perp-neg": (1, 2), "dual": (2, 3), "nested": (1, 2)}[name]
        positive, negative = (text(number) for number in pair)
        run(watched, cfg=scale, sigmas=STEP, positive=positive, negative=negative)
    assert nearly(after - before, denoised[0] - denoised[1], 1e-4)
    assert not nearly(after, before, 1e-3)


def test_a_guider_without_a_negative_works(sd15):
    steered = edit(edit(sd15, ONE), live())
    guider = Guider_Basic(steered)
    guider.set_conds(text(1))
    assert nearly(run(sd15, guider=guider), run(steered, cfg=1.0))


# --- directions from prompts -----------------------------------------------------------------------------------------


class Prompts:
    """For by_hand: h of two prompts at the noisy picture of each step, asked one by one."""

    def __init__(self):
        self.h = {}

    def ask(self, guider, x, level, options):
        for side in ("source", "target"):

            def note(h, label, options, side=side):
                self.h[side] = h.clone()
                return torch.zeros_like(h)

            conds = [guider.conds[side]]
            comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, level, patched(options, note))

    def change(self, h, label, options):
        difference = self.h["target"] - self.h["source"]
        return 0.5 * difference * (h.flatten(1).norm(dim=1) / difference.flatten(1).norm(dim=1))[:, None, None, None]


@pytest.mark.parametrize("controls", [False, True], ids=["", "control"])
def test_a_direction_of_prompts_is_their_difference_at_each_step(controls, model):
    """What stands on the positive beside its text, like a ControlNet, stands on both prompts."""
    if controls and model.model.adm_channels:
        pytest.skip("the ControlNet is one for the other model")
    extra = {"control": tiny_models.controlnet()} if controls else {}
    positive, source, target = (text(number, **extra) for number in (1, 51, 52))
    prompts, start = Prompts(), h_space.noise(2)
    hand = by_hand(prompts.change, before=prompts.ask)
    expected = run(model, hand, positive=positive, source=source, target=target, start=start)
    assert nearly(run(edit(model, live(positive)), positive=positive, start=start), expected)


def test_the_numbers_of_sdxl_come_with_the_prompts_and_from_the_positive(sdxl):
    """Each prompt has its own pooled text; sizes that it does not name are those of the positive."""
    sizes = {"width": 512, "height": 768, "crop_w": 64, "target_width": 256}
    prompts = Prompts()
    hand = by_hand(prompts.change, before=prompts.ask)
    positive, source, target = text(1, **sizes), text(51, **sizes), text(52, **{**sizes, "width": 64})
    expected = run(sdxl, hand, positive=positive, source=source, target=target)
    found = run(edit(sdxl, live(positive, text(51), text(52, width=64))), positive=positive)
    assert nearly(found, expected)
    other = text(51)
    other[0][1]["pooled_output"] = text(60)[0][1]["pooled_output"]
    assert not nearly(run(edit(sdxl, live(positive, other, text(52, width=64))), positive=positive), expected, 1e-3)


def test_prompts_of_another_length_and_positives_of_several_parts_work(sd15, monkeypatch):
    longer = live(source=text(51, tokens=10), target=text(52, tokens=15))
    positive = text(1, area=(8, 4, 0, 0)) + text(5)
    found = run(edit(sd15, longer), positive=positive)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(run(edit(sd15, longer), positive=positive), found)
    assert not nearly(run(sd15, positive=positive), found, 1e-3)


def test_the_prompts_see_the_whole_picture_with_what_stands_on_the_positive_for_it(sd15, monkeypatch):
    """Not a part, and not only in the steps that one of several positives is for."""
    seen = mock.Mock(wraps=module.note_h)
    monkeypatch.setattr(module, "note_h", seen)
    left = text(1, area=(8, 4, 0, 0), control=tiny_models.controlnet())
    for others in (text(11, area=(8, 4, 0, 4)), text(5, end_percent=0.3) + text(6, start_percent=0.3)):
        run(edit(sd15, live()), positive=left + others)
        assert seen.call_count == 4 and all(call.args[3].shape[-2:] == (2, 2) for call in seen.call_args_list)
        seen.reset_mock()
    whole = text(5)
    for positive in (left + whole, whole):
        run(edit(sd15, DIRECTIONS["live"], relative=False, strength=1e-9), positive=positive, sigmas=STEP)
    with_part, without = ([call.args[3] for call in seen.call_args_list[i : i + 2]] for i in (0, 2))
    assert all(nearly(a, b) for a, b in zip(with_part, without, strict=True))  # no control of the part


def test_what_an_inpainting_model_is_shown_is_shown_to_the_prompts(monkeypatch):
    model = tiny_models.sd15(in_channels=9, dtype=torch.float64)
    model.model.set_inpaint()
    shown = {"concat_latent_image": h_space.noise(seed=8), "concat_mask": (MASKS[:1, None, :8, :8] > 0.5).float()}
    positive, source, target = (text(number, **shown) for number in (1, 51, 52))
    prompts = Prompts()
    conds = {"positive": positive, "negative": text(2, **shown)}
    expected = run(model, by_hand(prompts.change, before=prompts.ask), source=source, target=target, **conds)
    assert nearly(run(edit(model, live(positive)), **conds), expected)


# --- any size, precision, order of runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (33, 6), (17, 24)])
def test_every_size_works(size, model):
    steered, start = model, {"start": tiny_models.noise(*size), "sigmas": STEP}
    for direction in DIRECTIONS.values():
        steered = edit(steered, direction, mask=MASKS)
    found = run(steered, **start)
    assert found.isfinite().all() and not nearly(found, run(model, **start), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    steered = model = tiny_models.sd15(dtype=dtype)
    for direction in DIRECTIONS.values():
        steered = edit(steered, direction)
        assert run(model, asyrp(direction, boost_start=0.5, boost_eta=1.0), sigmas=STEP).isfinite().all()
    assert run(steered).isfinite().all()


@pytest.mark.parametrize("direction", [DIRECTIONS["live"]], ids=["live"])
def test_clones_do_not_see_each_other_and_runs_repeat_themselves(direction, sd15):
    before, options = run(sd15), str(sd15.model_options)
    trunk = edit(sd15, direction)
    first = run(trunk)
    branch = edit(trunk, stored(9))
    assert not nearly(run(branch), first, 1e-3)
    assert torch.equal(run(trunk), first) and torch.equal(run(trunk.clone().clone()), first)
    assert torch.equal(run(sd15), before) and str(sd15.model_options) == options


class Fault(Exception):
    pass


@pytest.mark.parametrize(
    ("end", "of"),
    [(None, "live"), (None, "stored"), (Fault, "live"), (comfy.model_management.InterruptProcessingException, "live")],
)
def test_nothing_of_a_run_outlives_it(end, of, sd15, monkeypatch):
    kept, note, grid, direction = [], module.note_h, direction_module.change_on_grid, DIRECTIONS[of]

    def noted(step, side, window, h):
        kept.append(weakref.ref(h))
        note(step, side, window, h)

    def gridded(*args):
        found = grid(*args)
        kept.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "note_h", noted)
    monkeypatch.setattr(direction_module, "change_on_grid", gridded)
    runs = []

    def look(executor, *args, **kwargs):
        runs.extend([args[5][RUN]] if RUN in args[5] else [])
        return executor(*args, **kwargs)

    plain, steered, sampler = sd15.clone(), edit(sd15, direction, mask=MASKS), asyrp(direction)
    for model in (plain, steered):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", look)
    before = run(steered)

    def stop(*_):
        if end:
            raise end

    for model, with_sampler in ((steered, "euler"), (plain, sampler)):
        with pytest.raises(end) if end else nullcontext():
            run(model, with_sampler, callback=stop)
    gc.collect()
    assert kept and all(ref() is None for ref in kept)
    assert len(set(runs)) == 3 and all(not (found.step or found._made or found._at) for found in runs)
    assert torch.equal(run(steered), before)


# --- Asyrp Sampler ---------------------------------------------------------------------------------------------------


def test_the_sampler_is_the_edit_with_euler(direction, model):
    assert nearly(run(model, asyrp(direction)), usual(model, direction))


def test_the_sampler_is_the_edit_with_euler_without_a_negative(direction, sd15):
    assert nearly(run(sd15, asyrp(direction), cfg=1.0), run(edit(sd15, direction), cfg=1.0))


@pytest.mark.parametrize(
    "guide", [lambda model: rescale(pag(model)), lambda model: edit(model, stored(4), mode="symmetric", relative=False)]
)
def test_all_guidance_acts_on_both_calls_of_the_sampler(guide, sd15, caplog):
    expected = run(guide(sd15), by_hand(along(ONE, relative=False)))
    assert nearly(run(guide(sd15), asyrp(ONE, relative=False)), expected)
    assert "H-Space" not in caplog.text  # the sampler's own edit is in every prediction by design


@pytest.mark.parametrize("boost_eta", [1.0, 0.4])
def test_the_sampler_edits_first_and_draws_noise_anew_at_the_end(boost_eta, sd15):
    """By percents of the model's schedule; the middle is plain."""
    levels = torch.tensor([9.0, 3.0, 1.2, 0.6, 0.3, 0.0])
    sampling = sd15.get_model_object("model_sampling")
    edit_end, boost_start = 0.4, 0.7
    low, high = float(sampling.percent_to_sigma(edit_end)), float(sampling.percent_to_sigma(boost_start))
    assert 1.2 < low < 3.0 and 0.6 < high < 1.2
    hand = by_hand(along(ONE), lambda sigma: boost_eta if sigma <= high else 0.0, lambda sigma: sigma >= low)
    with tiny_models.forwards(sd15) as rows:
        found = run(sd15, asyrp(ONE, 0.5, edit_end, boost_start, boost_eta), sigmas=levels)
    assert rows == [2, 2, 2, 2, 2, 2, 2]
    assert nearly(found, run(sd15, hand, sigmas=levels))


def test_a_step_on_the_end_of_a_range_is_inside(sd15):
    """As everywhere: sigmas are in single precision, and the end is rounded as they are."""
    sampling = sd15.get_model_object("model_sampling")
    ends = {percent: torch.tensor(float(sampling.percent_to_sigma(percent))) for percent in (0.3, 0.4, 0.5, 0.6, 0.7)}
    for percent, sigma in ends.items():
        levels = torch.stack([sigma, sigma / 2])
        with tiny_models.forwards(sd15) as rows:
            renewed = run(sd15, asyrp(ONE, edit_end=percent, boost_start=percent, boost_eta=1.0), sigmas=levels)
        assert len(rows) == 2
        assert not nearly(renewed, run(sd15, asyrp(ONE, edit_end=percent), sigmas=levels), 1e-3)


def test_the_sampler_at_strength_0_is_euler_and_asks_once(sd15):
    with tiny_models.forwards(sd15) as rows:
        found = run(sd15, asyrp(strength=0.0))
    assert rows == [2] * 2 and nearly(found, run(sd15), 1e-6)


def test_with_noise_all_along_the_sampler_is_euler_ancestral(sd15):
    found = run(sd15, asyrp(strength=0.0, boost_start=0.0, boost_eta=1.0))
    assert nearly(found, run(sd15, "euler_ancestral"))
    flow = tiny_models.sd15(kind=ModelType.FLOW, dtype=torch.float64)
    found = run(flow, asyrp(ONE, boost_start=0.0, boost_eta=1.0), sigmas=h_space.FLOW)
    assert nearly(found, run(edit(flow, ONE), "euler_ancestral", sigmas=h_space.FLOW), FLOW_ROUNDING)


@pytest.mark.parametrize("name", GUIDERS)
def test_the_sampler_is_exact_with_any_guider(name, sd15):
    """All that the guider makes of its predictions is made of the edited ones too."""
    hand = by_hand(along(ONE, labels=(0, 1, 2)))
    found, expected = (run(sd15, sampler, guider=GUIDERS[name](sd15)[0]) for sampler in (asyrp(ONE), hand))
    assert nearly(found, expected)


@pytest.mark.parametrize(
    ("grouping", "of"),
    [
        ("split", "live"),
        ("split", "block"),
        ("slot", "live"),
        ("batch", "live"),
        ("windows", "live"),
        ("areas", "stored"),
        ("inpaint", "stored"),
    ],
)
def test_the_sampler_too_works_however_rows_are_grouped(grouping, of, sd15, monkeypatch):
    direction, batch = DIRECTIONS[of], {"start": h_space.noise(6 if grouping == "windows" else 2), "sigmas": STEP}
    sampler = asyrp(direction)
    if grouping == "split":
        with tiny_models.little_memory(monkeypatch, sd15):
            assert nearly(run(sd15, sampler), usual(sd15, direction))
    elif grouping == "slot":
        assert nearly(run(pass_through(sd15), sampler), usual(sd15, direction))
    elif grouping == "batch":
        alone = {**batch, "start": batch["start"][1:]}
        assert nearly(run(sd15, sampler, **alone)[0], run(sd15, sampler, **batch)[1])
    elif grouping == "areas":
        conds = {"positive": text(1, area=(8, 5, 0, 0)) + text(11, area=(8, 5, 0, 3))}
        assert nearly(run(sd15, sampler, **conds), run(edit(sd15, direction), **conds))
    elif grouping == "windows":
        if VERSION < (0, 8):
            pytest.skip("context windows over a batch of this host change plain sampling too")
        assert nearly(run(windows(sd15), sampler, **batch), run(sd15, sampler, **batch))
    else:
        settings = {"mask": (MASKS[:1, :8, :8] > 0.4).float()[:, None], "latent": h_space.noise(seed=4)}
        assert nearly(run(sd15, sampler, **settings), run(edit(sd15, direction), **settings))


def test_the_sampler_tells_its_steps(sd15):
    told = []
    levels = torch.tensor([9.0, 3.0, 1.0, 0.0])
    note = lambda step, denoised, x, total: told.append((step, denoised, total))  # noqa: E731
    found = run(sd15, asyrp(ONE), sigmas=levels, callback=note)
    assert [(step, total) for step, _, total in told] == [(0, 3), (1, 3), (2, 3)]
    assert nearly(sd15.model.process_latent_out(told[-1][1]), found)  # at the end the edited picture is the result


def test_the_host_loads_a_delta_block_with_the_model(sd15):
    direction = h_space.block()
    for steered, sampler in ((edit(sd15, direction), "euler"), (sd15, asyrp(direction))):
        comfy.model_management.unload_all_models()
        loaded: list[ModelPatcher] = []
        run(steered, sampler, callback=lambda *_, found=loaded: found.extend(comfy.model_management.loaded_models()))
        assert {id(found.model) for found in loaded} >= {id(direction.network.model), id(sd15.model)}
