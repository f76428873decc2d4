"""Methods on the step's predictions, on diffusion transformers of every family, against the papers' own formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reins.engine.scope import record_of
from reins.models.guidance.image_loss import LOSSES
from reins.models.guidance.windows import windows
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.look.nodes import GuidancePlot
from reins.tests.helpers import tiny_models
from reins.tests.helpers.flows import CFG, both, guided, of_output, outputs, points_of, schedule
from reins.tests.helpers.methods import apg, cfg_zero, fdg, interval, rescale, scope, swg, weak
from reins.tests.helpers.references import apg_by_the_paper, fdg_by_the_paper
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, VIDEO, latent, noise_like, sample

CLOSE = 1e-4  # of the largest value, in single precision
PICTURE = torch.rand((1, 64, 96, 3), generator=torch.Generator().manual_seed(3))
every_family = pytest.mark.parametrize("family", GUIDED)


def plain_cfg(positive, negative, cfg=CFG):
    return negative + cfg * (positive - negative)


def one_frame(family):
    return {"frames": 1} if family in VIDEO else {}


# --- corrections of CFG ---


@every_family
def test_apg_follows_the_papers_algorithm_over_the_steps(family):
    model = MODELS[family]()
    points = points_of(family, model, count=2, batch=2)
    predicted, average = both(family, model, points), 0.0
    longest = float((predicted[0][0] - predicted[0][1])[0].norm()) / 2
    steered = guided(family, apg(model, 0.3, longest, -0.5), points)
    for found, (c, u) in zip(steered, predicted, strict=True):
        average = c - u - 0.5 * average
        rows = [apg_by_the_paper(*pair, 0.3, longest) for pair in zip(average, c, strict=True)]
        expected = c + (CFG - 1) * torch.stack(rows)
        assert nearly(found, expected, CLOSE) and not nearly(plain_cfg(c, u), expected, 1e-2)


@every_family
@pytest.mark.parametrize("levels", [2, 3])
def test_fdg_guides_each_band_of_each_frame_by_its_factor(levels, family):
    model = MODELS[family]()
    points = points_of(family, model, batch=2, h=10)
    ((c, u),) = both(family, model, points)
    frames = (c - u).unsqueeze(2) if c.ndim == 4 else c - u
    guidance = torch.stack([fdg_by_the_paper(frame, 0.5, 3.0, levels) for frame in frames.unbind(2)], 2).view_as(c)
    (found,) = guided(family, fdg(model, 0.5, 3.0, levels), points)
    assert nearly(found, u + CFG * guidance, CLOSE) and not nearly(plain_cfg(c, u), u + CFG * guidance, 1e-2)


@every_family
def test_cfg_zero_scales_the_negatives_velocity(family):
    """The velocity is what the network puts out (equations 8 and 9)."""
    model = MODELS[family]()
    (point,) = points_of(family, model, batch=2)
    v_c, v_u = outputs(family, model, point)
    shape = (2, *[1] * (v_c.ndim - 1))
    best = torch.stack([(c * u).sum() / (u * u).sum() for c, u in zip(v_c, v_u, strict=True)]).view(shape)
    expected = of_output(model, best * v_u + CFG * (v_c - best * v_u), point)
    (found,) = guided(family, cfg_zero(model), [point])
    assert nearly(found, expected, CLOSE) and not nearly(of_output(model, plain_cfg(v_c, v_u), point), expected, 1e-3)


@every_family
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_the_first_steps_of_cfg_zero_have_no_velocity(sampler, family):
    """The picture that the network is shown stays as it is, whatever its noise level is called."""
    model = MODELS[family]()
    sampling, seen = model.get_model_object("model_sampling"), []

    def note(i, denoised, x, steps):
        sigma = schedule(model)[i : i + 1]
        seen.append(
            (sampling.calculate_input(sigma, x), denoised, of_output(model, torch.zeros_like(x), (x, float(sigma))))
        )

    sample(family, cfg_zero(model, 2), steps=4, sampler=sampler, callback=note)
    for shown, denoised, still in seen[:2]:
        assert nearly(shown, seen[0][0], CLOSE) and nearly(denoised, still, CLOSE)
    assert nearly(seen[2][0], seen[0][0], CLOSE) and not nearly(seen[3][0], seen[0][0], 1e-2)


# --- others ---


@every_family
def test_the_interval_leaves_the_negative_out_elsewhere(family):
    model = MODELS[family]()
    points = points_of(family, model, first=0, count=3, batch=2)
    percent = model.get_model_object("model_sampling").percent_to_sigma
    levels = [sigma for _, sigma in points]
    start = next(p / 1000 for p in range(1000) if percent(p / 1000) < (levels[0] + levels[1]) / 2)
    end = next(p / 1000 for p in range(1000) if percent(p / 1000) < (levels[1] + levels[2]) / 2)
    expected = both(family, model, points)
    with tiny_models.forwards(model) as rows:
        found = guided(family, interval(model, start, end), points)
    assert sum(rows) == 8  # Flux2 has texts of one length, so that both prompts share a call
    for i, (c, u) in enumerate(expected):
        assert nearly(found[i], plain_cfg(c, u) if i == 1 else c, CLOSE)
        assert not nearly(c, plain_cfg(c, u), 1e-3)


@every_family
def test_rescale_gives_the_networks_output_the_positives_deviation(family):
    model = MODELS[family]()
    (point,) = points_of(family, model, batch=2)
    v_c, v_u = outputs(family, model, point)
    rows = []
    for c, v in zip(v_c, plain_cfg(v_c, v_u), strict=True):  # equations 15 and 16
        rows.append(0.7 * v * c.std() / v.std() + 0.3 * v)
    expected = of_output(model, torch.stack(rows), point)
    (found,) = guided(family, rescale(model, 0.7), [point])
    assert nearly(found, expected, CLOSE) and not nearly(of_output(model, plain_cfg(v_c, v_u), point), expected, 1e-3)


@every_family
@pytest.mark.parametrize("cfg", [CFG, 1.0])
def test_a_weak_model_is_steered_away_from(cfg, family):
    model, other = MODELS[family](), MODELS[family](1)
    points = points_of(family, model, batch=2)
    ((c, u),), ((away, _),) = both(family, model, points), both(family, other, points)
    (found,) = guided(family, weak(model, other, 1.5), points, cfg)
    assert nearly(found, plain_cfg(c, u, cfg) + 1.5 * (c - away), CLOSE) and not nearly(c, away, 1e-2)


@every_family
def test_a_scope_notes_the_changes_of_a_step_and_a_plot_draws_them(family):
    model = MODELS[family]()
    points = points_of(family, model, batch=2)
    ((c, u),) = both(family, model, points)
    watched = scope(fdg(model))
    (found,), (plain,) = (guided(family, one, points) for one in (watched, fdg(model)))
    assert torch.equal(found, plain)
    (moment,) = record_of(watched).moments
    changes = {"CFG": (CFG - 1) * (c - u), "FDG": found - plain_cfg(c, u)}
    assert [reading.name for reading in moment.readings] == list(changes)
    for reading, change in zip(moment.readings, changes.values(), strict=True):
        pairs = zip(change.flatten(1), (c - u).flatten(1), strict=True)
        cosine = torch.stack([F.cosine_similarity(*pair, 0) for pair in pairs])
        torch.testing.assert_close(reading.norm, change.square().mean().sqrt(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(reading.cosine, cosine.mean(), rtol=1e-3, atol=1e-3)
    drawn = GuidancePlot.execute({"samples": found}, watched).result[0]
    assert drawn.shape[-1] == 3 and drawn.min() < 0.9


# --- pictures and videos of one frame ---


@every_family
def test_swg_steers_away_from_the_mean_over_windows(family):
    model, tile, overlap = MODELS[family](), 6, 2
    ((x, sigma),) = points_of(family, model, batch=2, w=14, **one_frame(family))
    ((c, u),) = both(family, model, [(x, sigma)])
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for h, w, top, left in windows((8, 14), tile, overlap):
        part = (..., slice(top, top + h), slice(left, left + w))
        total[part] += guided(family, model, [(x[part].clone(), sigma)], 1.0)[0]
        count[part] += 1
    cell = getattr(model.model.latent_format, "spacial_downscale_ratio", {"ltxv": 32}.get(family, 8))
    (found,) = guided(family, swg(model, 1.5, cell * tile, cell * overlap), [(x, sigma)])
    assert nearly(found, plain_cfg(c, u) + 1.5 * (c - total / count), CLOSE)
    assert not nearly(found, plain_cfg(c, u), 1e-2)


def slope(loss, x, target):
    x = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(LOSSES[loss](x, target), x)[0]


@every_family
@pytest.mark.parametrize("cfg", [CFG, 1.0])
def test_the_result_is_moved_down_the_gradient_of_a_latents_loss(cfg, family):
    model, loss = MODELS[family](), "low frequencies"
    points = points_of(family, model, batch=2, **one_frame(family))
    ((c, u),) = both(family, model, points)
    wanted = noise_like(latent(family, **one_frame(family)), 9)
    plain, target = plain_cfg(c, u, cfg), model.model.process_latent_in(wanted)
    pictures = [part.squeeze(2) if part.ndim == 5 else part for part in (plain, target.expand_as(plain))]
    expected = plain - 0.7 * slope(loss, *pictures).view_as(plain)
    node = ImageGuidance.execute(model, loss, 0.7, 0.0, 1.0, latent={"samples": wanted}).result[0]
    (found,) = guided(family, node, points, cfg)
    assert nearly(found, expected, CLOSE) and not nearly(plain, expected, 1e-2)


def test_an_image_is_refused_if_the_hosts_preview_knows_a_part_of_the_channels():
    with pytest.raises(ValueError, match="are known for 32 channels, but they have 128"):
        ImageGuidance.execute(MODELS["flux2"](), "edges", 0.7, 0.0, 1.0, image=PICTURE)


@pytest.mark.parametrize("family", [family for family in GUIDED if family != "flux2"])
def test_an_image_is_compared_in_the_hosts_preview_colours(family):
    model, loss = MODELS[family](), "colour histogram"
    points = points_of(family, model, **one_frame(family))
    ((plain, _),) = both(family, model, points)
    fmt = model.model.latent_format
    factors = torch.tensor(fmt.latent_rgb_factors)
    bias = torch.tensor(getattr(fmt, "latent_rgb_factors_bias", None) or [0.0, 0, 0])
    shown = (plain.squeeze(2) if plain.ndim == 5 else plain).movedim(1, -1) @ factors + bias
    target = F.interpolate(PICTURE.movedim(-1, 1) * 2 - 1, (8, 12), mode="area")
    back = slope(loss, shown.movedim(-1, 1), target).movedim(1, -1) @ factors.T
    expected = plain - 0.7 * back.movedim(-1, 1).view_as(plain) / torch.linalg.matrix_norm(factors, 2) ** 2
    node = ImageGuidance.execute(model, loss, 0.7, 0.0, 1.0, image=PICTURE).result[0]
    (found,) = guided(family, node, points, 1.0)
    assert nearly(found, expected, CLOSE) and not nearly(plain, expected, 1e-3)
