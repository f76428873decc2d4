"""Methods on the step's predictions (APG, FDG, CFG-Zero*, Image Guidance), against the papers' own combinations."""

from __future__ import annotations

import comfy_extras.nodes_sag
import pytest
import torch
import torch.nn.functional as F
from comfy.model_base import ModelType
from reins.models.guidance.frequency_bands import split_bands
from reins.models.guidance.image_loss import LOSSES
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.tests.helpers import h_space, tiny_models
from reins.tests.helpers.methods import apg, cfg_zero, fdg, image, interval, pag
from reins.tests.helpers.predictions import KINDS, conds, denoise, in_one_run
from reins.tests.helpers.references import apg_by_the_paper
from reins.tests.helpers.tiny_models import nearly, noise, text

CORRECTIONS = {"apg": apg, "fdg": fdg, "cfg-zero": lambda model, **span: cfg_zero(model, 1, **span)}
SMALL = (8, 8)


@pytest.fixture(params=CORRECTIONS)
def correction(request):
    return CORRECTIONS[request.param]


def both(model, sigma=3.0, **settings):
    """The positive and the negative prediction of the host."""
    return denoise(model, 1.0, sigma, **settings), denoise(model, 0.0, sigma, **settings)


# --- APG ---


def apg_steps(model, points, eta, threshold, momentum, cfg):
    """Algorithm 1 of the paper, a call of the model for each step."""
    average, found = 0.0, []
    for x, sigma in points:
        positive, negative = both(model, sigma, x=x)
        average = positive - negative + momentum * average
        guidance = [apg_by_the_paper(*pair, eta, threshold) for pair in zip(average, positive, strict=True)]
        found.append(positive + (cfg - 1) * torch.stack(guidance))
    return found


@pytest.mark.parametrize(("eta", "threshold", "momentum"), [(0.0, 15.0, -0.5), (0.4, 0.0, 0.7), (1.0, 3.0, 0.0)])
def test_apg_follows_the_papers_algorithm_over_the_steps(eta, threshold, momentum, sd15):
    points = [(sigma * noise(*SMALL, b=2, seed=i), sigma) for i, sigma in enumerate(h_space.LEVELS.tolist()[:-1])]
    expected = apg_steps(sd15, points, eta, threshold, momentum, 5.0)
    for _ in range(2):  # the second run starts anew
        for found, wanted in zip(in_one_run(apg(sd15, eta, threshold, momentum), points), expected, strict=True):
            assert nearly(found, wanted)


def test_apgs_momentum_counts_steps_of_the_sampler_and_not_calls(sd15):
    """heun asks where a step ends and again where the next one starts; dpm_2 between the two."""
    x = [3 * noise(*SMALL, seed=i) for i in range(4)]
    steered = apg(sd15, 0.3, 0.0, 0.6)
    for asked in ([(x[0], 9.0), (x[1], 3.0), (x[2], 3.0)], [(x[0], 9.0), (x[1], 5.0), (x[2], 3.0)]):
        *_, found = in_one_run(steered, asked)
        _, wanted = apg_steps(sd15, [asked[0], asked[2]], 0.3, 0.0, 0.6, 5.0)
        assert nearly(found, wanted)
        middle = in_one_run(steered, asked)[1]
        if asked[1][1] == 3.0:
            assert nearly(middle, apg_steps(sd15, asked[:2], 0.3, 0.0, 0.6, 5.0)[1])
        else:
            assert nearly(middle, apg_steps(sd15, asked[1:2], 0.3, 0.0, 0.6, 5.0)[0])


def test_neutral_settings_of_apg_give_the_model_back(sd15):
    assert apg(sd15, 1.0, 0.0, 0.0) is sd15
    assert nearly(denoise(apg(sd15, 1.0, 1e9, 0.0)), denoise(sd15))


def test_two_apgs_keep_a_momentum_each(sd15):
    points = [(3 * noise(*SMALL, seed=i), sigma) for i, sigma in enumerate((9.0, 3.0))]
    plain, once, twice = (in_one_run(m, points)[1] for m in (sd15, apg(sd15), apg(apg(sd15))))
    assert nearly(twice - plain, 2 * (once - plain), 1e-4)


# --- FDG ---


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (9, 31)])
@pytest.mark.parametrize("levels", [2, 4])
def test_fdg_guides_each_band_by_its_factor(size, levels, sd15):
    positive, negative = both(sd15, size=size)
    found = split_bands(positive - negative, levels)
    share = [1 - i / (len(found) - 1) for i in range(len(found))]
    guidance = sum((3.0 * s + 0.5 * (1 - s)) * 5.0 * band for s, band in zip(share, found, strict=True))
    assert nearly(denoise(fdg(sd15, 0.5, 3.0, levels), size=size), negative + guidance)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_fdg_with_equal_factors_is_cfg_by_that_factor(factor, model):
    assert nearly(denoise(fdg(model, factor, factor, 3), 5.0), denoise(model, 5.0 * factor))


# --- CFG-Zero* ---


@pytest.mark.parametrize("kind", KINDS)
def test_cfg_zero_scales_the_negatives_velocity(kind):
    model, sigma = tiny_models.sd15(kind=kind, dtype=torch.float64), 0.7
    x = sigma * noise(*SMALL, b=2)
    v_c, v_u = (x - one for one in both(model, sigma, x=x))
    alpha = torch.stack([(c * u).sum() / (u * u).sum() for c, u in zip(v_c, v_u, strict=True)]).view(2, 1, 1, 1)
    expected = x - (alpha * v_u + 5.0 * (v_c - alpha * v_u))
    assert nearly(denoise(cfg_zero(model), 5.0, sigma, x=x), expected)
    assert not nearly(denoise(model, 5.0, sigma, x=x), expected, 1e-3)


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.FLOW])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_the_first_steps_of_cfg_zero_leave_x_where_it_is(kind, sampler):
    model = tiny_models.sd15(kind=kind, dtype=torch.float64)
    sigmas = h_space.LEVELS if kind is ModelType.EPS else h_space.FLOW
    states = []
    h_space.run(
        cfg_zero(model, 2),
        sampler,
        sigmas=torch.cat([sigmas[:3], sigmas[:0]]),
        callback=lambda i, x0, x, n: states.append((x0, x)),
    )
    h_space.run(cfg_zero(model, 1), sampler, sigmas=sigmas[:3], callback=lambda i, x0, x, n: states.append((x0, x)))
    (first, start), (second, after), (held, _), (moved, unmoved) = states
    assert nearly(first, start) and nearly(after, start) and nearly(second, after)
    assert nearly(held, start) and nearly(unmoved, start) and not nearly(moved, unmoved, 1e-3)


# --- all three ---


def test_at_cfg_one_a_correction_changes_no_bit(correction, model):
    assert torch.equal(denoise(correction(model), 1.0), denoise(model, 1.0))


def test_at_cfg_one_a_correction_does_nothing_also_where_another_node_wants_the_negative(correction, sd15):
    wanted = comfy_extras.nodes_sag.SelfAttentionGuidance.execute(sd15, 0.5, 2.0).result[0]
    assert nearly(denoise(correction(wanted), 1.0), denoise(wanted, 1.0))


def test_a_negative_whose_time_is_over_is_not_corrected(correction, sd15):
    over = conds(2, timestep_start=0.5, timestep_end=0.1)  # active between these sigmas, not at 3
    assert torch.equal(denoise(correction(sd15), negative=over), denoise(sd15, negative=over))
    active = conds(2, timestep_start=5.0, timestep_end=0.1)
    assert not nearly(denoise(correction(sd15), negative=active), denoise(sd15, negative=active), 1e-3)


def test_a_correction_is_not_at_work_outside_of_its_range_or_the_intervals(correction, sd15):
    sampling = sd15.get_model_object("model_sampling")
    for percent, inside in ((0.19, False), (0.2, True), (0.5, True), (0.51, False)):
        sigma = float(sampling.percent_to_sigma(percent))
        found = denoise(correction(sd15, start=0.2, end=0.5), sigma=sigma, size=SMALL)
        assert torch.equal(found, denoise(sd15, sigma=sigma, size=SMALL)) != inside
        found = denoise(correction(interval(sd15, 0.2, 0.5)), sigma=sigma, size=SMALL)
        assert torch.equal(found, denoise(sd15, 1.0, sigma=sigma, size=SMALL)) != inside


def test_a_correction_adds_up_with_a_term_in_both_orders(correction, sd15):
    effect = denoise(correction(sd15)) + denoise(pag(sd15)) - denoise(sd15)
    assert nearly(denoise(pag(correction(sd15))), effect)
    assert nearly(denoise(correction(pag(sd15))), effect)


def test_the_rows_of_a_step_stay_as_many(correction, sd15):
    with tiny_models.forwards(sd15) as rows:
        denoise(correction(sd15))
        denoise(correction(sd15), 1.0)
    assert rows == [2, 1]


# --- Image Guidance ---


def guided(model, loss="low frequencies", scale=0.5, **inputs):
    return ImageGuidance.execute(model, loss, scale, 0.0, 1.0, **inputs).result[0]


def slope(loss, x, target):
    x = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(LOSSES[loss](x, target), x)[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_the_result_is_moved_down_the_gradient_of_a_latents_loss(loss, cfg, sd15):
    wanted = 3 * noise(12, 12, b=2, seed=9)
    plain = denoise(sd15, cfg, b=2)
    target = sd15.model.process_latent_in(wanted)
    expected = plain - 0.7 * slope(loss, plain, target.to(plain))
    assert nearly(denoise(guided(sd15, loss, 0.7, latent={"samples": wanted}), cfg, b=2), expected)
    assert not nearly(plain, expected, 1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_is_compared_in_the_hosts_preview_colours(loss, sd15):
    picture = torch.rand((1, 96, 96, 4), generator=torch.Generator().manual_seed(3))
    fmt, plain = sd15.model.latent_format, denoise(sd15)
    factors = torch.tensor(fmt.latent_rgb_factors).to(plain)
    bias = torch.tensor(getattr(fmt, "latent_rgb_factors_bias", None) or [0.0, 0, 0]).to(plain)

    def shown(x):
        return torch.einsum("bchw,cr->brhw", x, factors) + bias.view(1, 3, 1, 1)

    target = F.interpolate(picture[..., :3].movedim(-1, 1) * 2 - 1, (12, 12), mode="area").to(plain)
    back = torch.einsum("brhw,cr->bchw", slope(loss, shown(plain), target), factors)
    expected = plain - 0.7 * back / torch.linalg.matrix_norm(factors, 2) ** 2
    found = denoise(guided(sd15, loss, 0.7, image=picture))
    assert nearly(found, expected)
    assert LOSSES[loss](shown(found), target) < LOSSES[loss](shown(plain), target)


def test_a_full_step_towards_a_latents_histogram_reaches_it(sd15):
    wanted = noise(12, 12, seed=9)
    found = denoise(guided(sd15, "colour histogram", 1.0, latent={"samples": wanted}))
    target = sd15.model.process_latent_in(wanted)
    assert nearly(found.flatten(2).sort(-1).values, target.flatten(2).sort(-1).values.to(found))


def test_each_picture_has_its_own_target_and_those_beyond_the_last_the_last(sd15):
    x, wanted = 3 * noise(12, 12, b=3), noise(20, 7, b=2, seed=9)
    found = denoise(guided(sd15, latent={"samples": wanted}), x=x)
    for i, own in enumerate((0, 1, 1)):
        alone = guided(sd15, latent={"samples": wanted[own : own + 1]})
        assert nearly(found[i : i + 1], denoise(alone, x=x[i : i + 1]))


def test_image_guidance_has_its_range_and_joins_the_others(sd15):
    sampling = sd15.get_model_object("model_sampling")
    for percent, inside in ((0.19, False), (0.2, True), (0.5, True), (0.51, False)):
        sigma = float(sampling.percent_to_sigma(percent))
        found = denoise(image(sd15, start=0.2, end=0.5), sigma=sigma, size=SMALL)
        assert torch.equal(found, denoise(sd15, sigma=sigma, size=SMALL)) != inside
    assert guided(sd15, scale=0.0, latent={"samples": noise()}) is sd15
    assert tiny_models.sample(image(sd15), SMALL, steps=2, positive=text(1)).isfinite().all()
