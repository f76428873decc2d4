"""UniCon in the sampling loop, against hand-written loops over predictions that the stored results vouch for."""

from __future__ import annotations

from itertools import pairwise

import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from reins.nodes.unicon.joint_node import UniConSplit
from reins.nodes.unicon.two_clocks_node import UniConSampler
from reins.tests.helpers import tiny_models, unicon
from reins.tests.helpers.methods import pag
from reins.tests.helpers.tiny_models import nearly, sample, text
from reins.tests.helpers.unicon import halves, run_joint

SIZE = (16, 16)
GIVEN = 0.0413


@pytest.fixture
def sd15():
    return tiny_models.sd15(dtype=torch.float64)


def sigmas_of(model, steps=2):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def side_by_side(model, x, y, level_x, level_y, cfg, seed=0, condition=None):
    """(denoised x, denoised y) of one guided prediction with a noise level for each."""
    steered = unicon.joint(model, seed) if condition is None else condition
    levels = torch.cat([torch.full((len(x),), float(level_x)), torch.full((len(y),), float(level_y))])
    positive, negative = [tiny_models.cond(text(1)[0][0])], [tiny_models.cond(text(2)[0][0])]
    return tiny_models.denoise(steered, torch.cat([x, y]), levels, positive, negative, cfg).chunk(2)


def partner_rows(model, seed=0, sigma=GIVEN):
    clean = model.model.process_latent_in(unicon.latent()["samples"])
    return clean + sigma * comfy.sample.prepare_noise(clean, seed)


def start(model, steps=2):
    sigmas = sigmas_of(model, steps)
    return tiny_models.noise(*SIZE) * (1 + sigmas[0] ** 2) ** 0.5, sigmas


def finished(model, x):
    return model.model.process_latent_out(x)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_beside_a_given_condition_the_image_takes_the_steps_of_a_loop_by_hand(cfg, sd15):
    x, sigmas = start(sd15)
    y = partner_rows(sd15)
    for now, then in pairwise(sigmas):
        denoised, _ = side_by_side(sd15, x, y, now, GIVEN, cfg)
        x = x + (x - denoised) / now * (then - now)
    assert nearly(sample(unicon.apply(sd15), cfg=cfg), finished(sd15, x), 1e-5)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_beside_a_given_image_the_condition_takes_the_steps_of_a_loop_by_hand(cfg, sd15):
    """The sampler's prompts are then those of the condition."""
    y, sigmas = start(sd15)
    x = partner_rows(sd15)
    turned = unicon.joint(sd15, positive=text(1), negative=text(2))
    for now, then in pairwise(sigmas):
        levels = torch.tensor([GIVEN, float(now)])
        conds = [[tiny_models.cond(text(seed)[0][0])] for seed in (31, 41)]
        _, denoised = tiny_models.denoise(turned, torch.cat([x, y]), levels, *conds, cfg).chunk(2)
        y = y + (y - denoised) / now * (then - now)
    assert nearly(sample(unicon.apply(sd15, role="image"), cfg=cfg), finished(sd15, y), 1e-5)


def test_a_higher_partner_sigma_and_another_seed_noise_the_partner(sd15):
    model = unicon.apply(sd15, partner_sigma=2.0, partner_seed=3)
    x, sigmas = start(sd15, 1)
    denoised, _ = side_by_side(sd15, x, partner_rows(sd15, 3, 2.0), sigmas[0], 2.0, 5.0)
    assert nearly(sample(model, steps=1), finished(sd15, denoised), 1e-5)
    assert not nearly(
        sample(unicon.apply(sd15, partner_sigma=2.0)),
        sample(unicon.apply(sd15, partner_sigma=2.0, partner_seed=3)),
        1e-3,
    )


@pytest.mark.parametrize("strength", [(0.6, 1.0), (1.0, 0.3), (-1.0, 2.0)])
def test_strengths_weigh_what_each_branch_sees(strength, sd15):
    x, y = 3 * tiny_models.noise(), 2 * tiny_models.noise(seed=9)
    steered = unicon.joint(sd15, strength_x=strength[0], strength_y=strength[1])
    first = side_by_side(sd15, x, y, 3.0, 1.0, 1.0, condition=steered)
    other = side_by_side(sd15, x, y, 3.0, 1.0, 1.0)
    assert not nearly(first[0], other[0], 1e-3) or strength[0] == 1
    scaled = unicon.file_for(sd15)
    for name in scaled:  # P's rows: those of x, then those of y
        if name.endswith("conv1n.weight"):
            half = len(scaled[name]) // 2
            scaled[name] = torch.cat([scaled[name][:half] * strength[0], scaled[name][half:] * strength[1]])
    by_file = unicon.joint(sd15, weights=scaled)
    assert all(
        nearly(a, b) for a, b in zip(first, side_by_side(sd15, x, y, 3.0, 1.0, 1.0, condition=by_file), strict=True)
    )


def test_with_a_matrix_of_zeros_the_image_is_as_without(sd15):
    weights = unicon.file_for(sd15)
    weights = {name: value * 0 if "conv1n" in name else value for name, value in weights.items()}
    assert nearly(sample(unicon.apply(sd15, weights=weights)), sample(sd15), 1e-9)
    assert torch.equal(sample(unicon.apply(sd15, strength_x=0.0)), sample(sd15))


@pytest.mark.parametrize("post", ["conv_fuse", "conv"])
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("skipped", [(), ("down_blocks",)])
def test_files_of_every_make_act(post, condition, skipped, sd15):
    file = {"post": post, "condition": condition, "skipped": skipped}
    assert not nearly(sample(unicon.apply(sd15, file=file)), sample(sd15), 1e-3)


def test_condition_guidance_leads_away_from_the_image_alone(sd15):
    """eps = u + s (c - u) + g (c - c_off), with c_off the image by itself."""
    x = 3 * tiny_models.noise()
    positive, negative = [tiny_models.cond(text(1)[0][0])], [tiny_models.cond(text(2)[0][0])]

    def alone(conds):
        return tiny_models.denoise(sd15, x, 3.0, conds, None, 1.0)

    def seen(model, cfg):
        return tiny_models.denoise(model, x, 3.0, positive, negative, cfg)

    guided, without = seen(unicon.apply(sd15, condition_guidance=2.0), 5.0), seen(unicon.apply(sd15), 5.0)
    c = tiny_models.denoise(unicon.apply(sd15), x, 3.0, positive, None, 1.0)
    assert nearly(guided, without + 2.0 * (c - alone(positive)), 1e-5)


def test_condition_guidance_of_a_sampled_condition_keeps_its_lora(sd15):
    x, y = partner_rows(sd15), 3 * tiny_models.noise()
    positive = [tiny_models.cond(text(1)[0][0])]
    c, guided = (
        tiny_models.denoise(unicon.apply(sd15, role="image", condition_guidance=g), y, 3.0, positive, None, 1.0)
        for g in (0.0, 2.0)
    )
    unseen = unicon.joint(sd15, strength_y=0.0, positive=text(1))
    _, off = tiny_models.denoise(
        unseen, torch.cat([x, y]), torch.tensor([GIVEN, 3.0]), [tiny_models.cond(text(31)[0][0])], None, 1.0
    ).chunk(2)
    assert nearly(guided, c + 2.0 * (c - off), 1e-5)


@pytest.mark.parametrize(
    ("steer", "cfg", "rows"),
    [
        (lambda m: unicon.apply(m), 5.0, 4),
        (lambda m: unicon.apply(m), 1.0, 2),
        (lambda m: unicon.apply(m, role="image"), 5.0, 4),
        (lambda m: unicon.apply(m, condition_guidance=2.0), 5.0, 5),
        (lambda m: unicon.apply(m, condition_guidance=2.0, role="image"), 1.0, 3),
        (lambda m: unicon.apply(unicon.apply(m), 1), 5.0, 6),
        (lambda m: pag(unicon.apply(m)), 5.0, 6),
        (lambda m: unicon.apply(m, start_percent=0.9, end_percent=0.91), 5.0, 2),
        (lambda m: unicon.apply(m, start_percent=0.9, end_percent=0.91, condition_guidance=2.0), 5.0, 2),
        (lambda m: unicon.apply(m, strength_x=0.0), 5.0, 2),
    ],
)
def test_rows_per_step(steer, cfg, rows, sd15):
    """Each partner stands once beside each chunk that sees it, in one call."""
    steered = steer(sd15)
    with tiny_models.forwards(sd15) as found:
        sample(steered, cfg=cfg)
    assert found == [rows] * 2


def test_outside_of_its_range_the_partner_is_not_there(sd15):
    with tiny_models.forwards(sd15) as rows:
        sample(unicon.apply(sd15, start_percent=0.3, end_percent=0.6), steps=10)
    assert rows.count(4) == 3 and rows.count(2) == 7


def test_each_picture_has_its_own_partner_and_the_last_are_repeated_from_the_first(sd15):
    both = unicon.latent(b=2)
    starts = tiny_models.noise(b=3)
    found = sample(unicon.apply(sd15, partner=both), batch=3, start=starts)
    noise = comfy.sample.prepare_noise(both["samples"], 0)
    for i in range(3):
        # the noise of the second partner is the second of the same draw
        alone = {"samples": both["samples"][i % 2 : i % 2 + 1], "batch_index": [i % 2]}
        assert torch.equal(comfy.sample.prepare_noise(alone["samples"], 0, [i % 2]), noise[i % 2 : i % 2 + 1])
        assert nearly(sample(unicon.apply(sd15, partner=alone), start=starts[i : i + 1])[0], found[i])


def test_prompts_of_other_lengths_are_as_good(sd15):
    longer = [[text(31)[0][0].repeat(1, 3, 1), {}]]
    assert nearly(sample(unicon.apply(sd15, positive=longer)), sample(unicon.apply(sd15)))


def test_several_partners_act_in_any_order_and_each_has_an_effect(sd15):
    one, two = (
        (lambda m: unicon.apply(m, 1)),
        (lambda m: unicon.apply(m, 2, partner=unicon.latent(seed=5), strength_x=0.7)),
    )
    both = sample(two(one(sd15)))
    assert nearly(both, sample(one(two(sd15))))
    assert not nearly(both, sample(one(sd15)), 1e-3) and not nearly(both, sample(two(sd15)), 1e-3)


def test_a_partner_may_stand_beside_a_joint_latent(sd15):
    x, y = 3 * tiny_models.noise(), 2 * tiny_models.noise(seed=9)
    pair = unicon.joint(sd15)
    first = side_by_side(sd15, x, y, 3.0, 1.0, 5.0, condition=unicon.apply(pair, 1))
    second = side_by_side(sd15, x, y, 3.0, 1.0, 5.0, condition=unicon.joint(unicon.apply(sd15, 1)))
    assert all(nearly(a, b) for a, b in zip(first, second, strict=True))
    assert not nearly(first[0], side_by_side(sd15, x, y, 3.0, 1.0, 5.0)[0], 1e-3)


# Halves


@pytest.mark.parametrize("noise", [1.0, 0.7, 0.3])
def test_a_coarse_condition_runs_at_a_share_of_the_noise_in_an_ordinary_sampler(noise, sd15):
    """Against Euler with two noise levels by hand; few steps without CFG, for a random network magnifies rounding."""
    given = unicon.latent()
    table = sd15.get_model_object("model_sampling")
    share = 1.0 if noise == 1 else table.percent_to_sigma(1 - noise) / float(table.sigma_max)
    sigmas = sigmas_of(sd15, 2)
    drawn = tiny_models.noise(*SIZE, b=2)
    x = drawn[:1] * (1 + sigmas[0] ** 2) ** 0.5
    clean = sd15.model.process_latent_in(given["samples"])
    y = clean + share * drawn[1:] * (1 + sigmas[0] ** 2) ** 0.5
    for now, then in pairwise(sigmas):
        clean_x, clean_y = side_by_side(sd15, x, y, now, share * now, 1.0)
        x, y = (row + (row - at) / now * (then - now) for row, at in ((x, clean_x), (y, clean_y)))
    latent = halves(condition=given, condition_noise=noise)
    found = run_joint(unicon.joint(sd15, latent=latent), latent, steps=2, cfg=1.0)
    assert nearly(found[0], finished(sd15, x), 1e-4) and nearly(found[1], finished(sd15, y), 1e-4)


def test_noise_on_the_condition_may_be_said_at_either_node(sd15):
    latent = halves(condition=unicon.latent(), condition_noise=0.6)
    by_latent, by_node = (
        run_joint(unicon.joint(sd15, **said), latent) for said in ({"latent": latent}, {"condition_noise": 0.6})
    )
    assert torch.equal(by_latent[0], by_node[0])


def test_a_share_of_the_noise_on_no_condition_is_worth_a_warning(sd15, caplog):
    run_joint(unicon.joint(sd15, condition_noise=0.5), halves())
    assert "holds no condition" in caplog.text
    caplog.clear()
    run_joint(unicon.joint(sd15), halves())
    assert not caplog.text


def test_a_condition_of_which_nothing_is_left_at_the_start_is_worth_a_warning(sd15, caplog):
    """As where UniCon Joint Latent has the share of noise, and its latent is not connected to UniCon Apply Joint."""
    latent = halves(condition=unicon.latent(), condition_noise=0.6)
    run_joint(unicon.joint(sd15), latent)
    assert "Connect the latent of UniCon Joint Latent to UniCon Apply Joint too" in caplog.text
    caplog.clear()
    kept = halves(condition={**unicon.latent(), "noise_mask": torch.zeros(1, 128, 128)})
    run_joint(unicon.joint(sd15, latent=latent), latent)
    run_joint(unicon.joint(sd15), kept)
    run_joint(unicon.joint(sd15), halves(condition=unicon.latent(), image=unicon.latent()), denoise=0.4)
    assert not caplog.text


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "heun", "lcm", "uni_pc"])
def test_a_condition_with_hardly_any_noise_comes_out_near_to_what_it_was(sampler, sd15):
    given = unicon.latent()
    latent = halves(condition=given, condition_noise=0.0)
    _, found = run_joint(unicon.joint(sd15, latent=latent), latent, sampler=sampler, cfg=1.0)
    assert nearly(found, given["samples"], 0.15)


def test_one_half_may_be_kept_by_a_mask(sd15):
    given = {**unicon.latent(), "noise_mask": torch.zeros(1, 128, 128)}
    for place, latent in enumerate((halves(image=given), halves(condition=given))):
        found = run_joint(unicon.joint(sd15), latent)
        assert nearly(found[place], given["samples"], 1e-6)
        assert not nearly(found[1 - place], given["samples"], 0.1)


def test_a_mask_keeps_a_part_of_a_coarse_condition(sd15):
    mask = torch.ones(1, 128, 128)
    mask[..., 64:] = 0
    given = {**unicon.latent(), "noise_mask": mask}
    latent = halves(condition=given, condition_noise=0.5)
    _, found = run_joint(unicon.joint(sd15, latent=latent), latent)
    assert nearly(found[..., 8:], given["samples"][..., 8:], 1e-6)
    assert not nearly(found[..., :8], given["samples"][..., :8], 1e-2)


def test_the_preview_shows_both_and_leaves_the_true_result(sd15):
    latent = halves(condition=unicon.latent(b=2), condition_noise=0.5)
    shown = []
    out = run_joint(
        unicon.joint(sd15, latent=latent),
        latent,
        callback=lambda step, x0, x, total: shown.append((step, total, x0.clone())),
    )
    assert [tuple(x0.shape) for _, _, x0 in shown] == [(2, 4, 16, 32)] * 2 + [(4, 4, 16, 16)]
    assert [step for step, *_ in shown] == [0, 1, 1]
    wide, last = shown[-2][2], shown[-1][2]
    assert torch.equal(torch.cat(last.chunk(2), -1), wide)
    assert nearly(last[2:], sd15.model.process_latent_in(out[1]), 1e-5)  # Euler ends at its last prediction


def test_the_preview_beside_a_partner_shows_what_is_sampled(sd15):
    shown = []
    sample(unicon.apply(sd15), callback=lambda step, x0, x, total: shown.append(tuple(x0.shape)))
    assert shown == [(1, 4, 16, 16)] * 2


def test_a_joint_latent_repeats_the_shorter_half(sd15):
    latent = halves(image=unicon.latent(b=1), condition=unicon.latent(b=3, seed=4), batch_size=2)
    assert latent["samples"].shape == (6, 4, 16, 16)
    assert torch.equal(latent["samples"][0], latent["samples"][2])
    assert halves(batch_size=2)["samples"].shape == (4, 4, 16, 16)


def test_noise_masks_follow_their_half_through_the_split():
    given = {**unicon.latent(), "noise_mask": torch.zeros(1, 128, 128)}
    first, second = UniConSplit.execute(halves(condition=given)).result
    assert first["noise_mask"].min() == 1 and second["noise_mask"].max() == 0
    assert "reins_condition_noise" not in first


# Two clocks


def run_clocks(model, latent, schedule, method="euler", eta=0.0, steps=6, seed=0, cfg=5.0, sigmas=None, **extra):
    sampler = UniConSampler.execute(method, eta, schedule).result[0]
    out = comfy.sample.sample_custom(
        model, tiny_models.noise(*SIZE, b=len(latent["samples"])), cfg, sampler,
        sigmas_of(model, steps) if sigmas is None else sigmas, text(1), text(2), latent["samples"],
        noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed, **extra,
    )  # fmt: skip
    return out.chunk(2)


def test_two_equal_clocks_are_one(sd15):
    found = run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1")
    assert all(nearly(a, b) for a, b in zip(found, run_joint(unicon.joint(sd15), halves(), steps=6), strict=True))


def test_a_condition_at_the_end_of_its_clock_is_nearly_a_given_one(sd15):
    """It waits at the last level before zero, where UniCon Apply keeps its partner."""
    last = float(sigmas_of(sd15)[-2])
    given = unicon.latent()
    drawn = tiny_models.noise(*SIZE, b=2)
    (x, _) = run_clocks(unicon.joint(sd15), halves(condition=given), "x 0-1, y 1-1", steps=2, cfg=1.0)
    level = torch.tensor([last])
    clean = sd15.model.process_latent_in(given["samples"])
    noisy = {"samples": finished(sd15, clean + level * (drawn[1:] - comfy.sample.prepare_noise(clean, 0)))}
    beside = comfy.sample.sample(
        unicon.apply(sd15, partner=noisy, partner_sigma=last), drawn[:1], 2, 1.0, "euler", "normal", text(1), text(2),
        torch.zeros(1, 4, *SIZE), seed=0, disable_pbar=True,
    )  # fmt: skip
    assert nearly(x, beside, 1e-4)


def test_ancestral_steps_without_new_noise_are_eulers_and_with_it_follow_the_seed(sd15):
    latent, model = halves(), unicon.joint(sd15)
    plain, *others = (
        run_clocks(model, latent, "x 0-1, y 0-1", "euler_ancestral", eta, seed=seed)[0]
        for eta, seed in ((0.0, 1), (1.0, 1), (1.0, 1), (1.0, 2))
    )
    assert nearly(plain, run_clocks(model, latent, "x 0-1, y 0-1")[0])
    assert torch.equal(others[0], others[1]) and not nearly(others[0], others[2], 1e-2)
    assert not nearly(others[0], plain, 1e-2)


@pytest.mark.parametrize("method", ["euler_ancestral", "ddim"])
def test_a_step_renews_its_share_of_the_noise(method, sd15):
    """sigma_up = eta sigma_to sqrt(1 - (sigma_to / sigma)^2), as in DDIM's equation 16 for pictures not scaled."""
    x, denoised, fresh = tiny_models.noise() * 5, tiny_models.noise(seed=1), tiny_models.noise(seed=2)
    sigma, target, eta = torch.tensor(5.0), torch.tensor(3.0), 0.5
    up = eta * target * (1 - (target / sigma) ** 2) ** 0.5
    expected = denoised + (x - denoised) / sigma * (target**2 - up**2) ** 0.5 + up * fresh
    found = UniConSampler.execute(method, eta, "x 0-1, y 0-1").result[0]._step(x, denoised, fresh, sigma, target)
    assert nearly(found, expected)


def test_a_run_that_does_not_begin_in_noise_is_refused(sd15):
    with pytest.raises(ValueError, match="needs sigmas of a whole run"):
        run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1", sigmas=sigmas_of(sd15, 6)[3:])


def test_a_run_that_is_cut_off_leaves_the_picture_as_long_as_it_is(sd15):
    first = sigmas_of(sd15, 6)[:4]
    euler, ddim = (
        run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1", method, sigmas=first)[0]
        for method in ("euler", "ddim")
    )
    assert nearly(ddim, euler, 1e-5)


def test_the_highest_seed_is_a_seed(sd15):
    found = run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1", "euler_ancestral", 1.0, seed=2**64 - 1)
    assert found[0].isfinite().all()


def test_segments_let_one_branch_go_first(sd15):
    """The condition is drawn beside an image of pure noise, then the image beside the finished condition."""
    with tiny_models.forwards(sd15) as rows:
        x, y = run_clocks(unicon.joint(sd15), halves(), "x 0-0, y 0-1; x 0-1, y 1-1")
    assert len(rows) == 6 + 5 and x.isfinite().all() and y.isfinite().all()


def test_a_mask_keeps_its_part_with_two_clocks(sd15):
    given = {**unicon.latent(), "noise_mask": torch.zeros(1, 128, 128)}
    for method in ("euler", "ddim"):
        _, y = run_clocks(unicon.joint(sd15), halves(condition=given), "x 0-1, y 0-1", method)
        assert nearly(y, given["samples"], 1e-6)


@pytest.mark.parametrize("schedule", ["", "x 0-1", "x 0-1, y 0-2", "x 1-0, y 0-1", "x 0.-1, y ..-1", "y 0-1, x 0-1"])
def test_a_schedule_that_cannot_be_read_is_refused_by_the_node(schedule):
    with pytest.raises(ValueError, match="chedule"):
        UniConSampler.execute("euler", 1.0, schedule)


def test_what_the_two_clocks_need_is_said(sd15):
    with pytest.raises(ValueError, match="no UniCon Apply Joint"):
        run_clocks(sd15, halves(), "x 0-1, y 0-1")
    with pytest.raises(ValueError, match=r"condition_noise 0\.5\. Set condition_noise to 1"):
        run_clocks(unicon.joint(sd15, condition_noise=0.5), halves(), "x 0-1, y 0-1")
    with pytest.raises(ValueError, match="at least two steps"):
        run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1", steps=1)
    with pytest.raises(
        ValueError, match="one ends at step 5 of x and 5 of y, and the next begins at 0 of x and 5 of y"
    ):
        run_clocks(unicon.joint(sd15), halves(), "x 0-1, y 0-1; x 0-1, y 1-1")
