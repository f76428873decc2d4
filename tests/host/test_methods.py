"""Each method by its paper: against the host's nodes, or against a few lines written from the formula."""

from __future__ import annotations

import comfy_extras.nodes_pag
import comfy_extras.nodes_sag
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_base import ModelType
from reins.engine.run import Run
from reins.engine.span import Span
from reins.models.guidance.blur import gaussian_blur
from reins.models.guidance.fade import linear
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import interval, pag, rescale, sag, seg
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import nearly, noise, sample, text

KINDS = [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW]
SIGMAS = {ModelType.FLOW: 0.7}


def conds(seed):
    return [tiny_models.cond(text(seed)[0][0])]


def denoise(model, cfg=5.0, sigma=3.0, size=(16, 16), b=1, negative=True):
    x = sigma * noise(*size, b=b)
    return tiny_models.denoise(model, x, sigma, conds(1), conds(2) if negative else None, cfg)


# --- PAG ---


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_pag_equals_the_hosts_node_bit_by_bit_when_it_calls_the_model_itself(model, cfg):
    host = comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]
    assert torch.equal(sample(pag(pass_through(model)), cfg=cfg), sample(host, cfg=cfg))


def test_pag_equals_the_hosts_node_bit_by_bit_in_single_precision():
    model = tiny_models.sd15()
    host = comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]
    assert torch.equal(sample(pag(pass_through(model))), sample(host))


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_pag_in_one_batch_equals_the_hosts_node(model, cfg):
    host = comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]
    assert nearly(denoise(pag(model), cfg), denoise(host, cfg))


def test_pag_at_chosen_layers_replaces_their_maps_by_the_identity(model):
    def own_value(q, k, v, options):
        return v

    perturbed = model.clone()
    for block, number in (("middle", 0), ("output", 1)):
        perturbed.set_model_attn1_replace(own_value, block, number)
    guided, positive = denoise(model), denoise(model, 1.0)
    expected = guided + 2.0 * (positive - denoise(perturbed, 1.0))
    assert nearly(denoise(pag(model, 2.0, layers="m0,u1")), expected)


def test_a_linear_fade_scales_each_step():
    model = tiny_models.sd15(dtype=torch.float64)
    sampling = model.get_model_object("model_sampling")
    for percent in (0.25, 0.4, 0.7):
        sigma = float(sampling.percent_to_sigma(percent))
        plain, full = denoise(model, sigma=sigma), denoise(pag(model), sigma=sigma)
        faded = denoise(pag(model, start=0.2, end=0.7, fade="linear"), sigma=sigma)
        assert nearly(faded, plain + linear(percent, 0.2, 0.7) * (full - plain), 1e-4)


def test_the_adaptive_fade_is_the_peers_curve():
    model = tiny_models.sd15(dtype=torch.float64)
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma(torch.tensor(600.0))
    expected = max(0.0, 3.0 - 3.0 * 0.15**4 * (1000 - 600))
    faded = denoise(pag(model, 3.0, fade="adaptive (peer)", adaptive_scale=0.15), sigma=float(sigma))
    assert nearly(faded, denoise(pag(model, expected), sigma=float(sigma)), 1e-4)


def test_a_node_after_ours_may_change_the_schedule(sd15):
    """Ranges are percents of the schedule that is sampled, wherever the node that set it stands."""

    class Shifted(type(sd15.get_model_object("model_sampling"))):
        def percent_to_sigma(self, percent):
            return super().percent_to_sigma(percent) / 2 if 0 < percent < 1 else super().percent_to_sigma(percent)

    shifted = Shifted(sd15.model.model_config)
    after = pag(sd15, start=0.2, end=0.4)
    after.add_object_patch("model_sampling", shifted)
    before = sd15.clone()
    before.add_object_patch("model_sampling", shifted)
    assert torch.equal(sample(after, steps=6), sample(pag(before, start=0.2, end=0.4), steps=6))
    assert not torch.equal(sample(after, steps=6), sample(pag(sd15, start=0.2, end=0.4), steps=6))


# --- SEG ---


@pytest.mark.parametrize("size", [(16, 16), (8, 64), (64, 8), (7, 18)])
def test_seg_with_an_infinite_blur_gives_each_place_the_mean_query(model, size):
    def mean_query(q, k, v, options):
        q = q.mean(1, keepdim=True).expand_as(q).contiguous()
        return optimized_attention(q, k, v, options["n_heads"])

    blurred = model.clone()
    blurred.set_model_attn1_replace(mean_query, "middle", 0)
    positive = denoise(model, 1.0, size=size)
    expected = denoise(model, size=size) + 3.0 * (positive - denoise(blurred, 1.0, size=size))
    assert nearly(denoise(seg(model), size=size), expected)


def test_seg_tends_to_plain_attention_and_to_no_guidance_for_a_narrow_blur(model):
    assert nearly(denoise(seg(model, blur_sigma=0.05)), denoise(model), 1e-6)


@pytest.mark.parametrize("size", [(16, 128), (128, 16), (5, 5)])
def test_seg_takes_wide_and_tall_grids(model, size):
    assert denoise(seg(model, blur_sigma=10.0, layers="all"), size=size).isfinite().all()


# --- SAG ---


def sag_by_the_paper(model, kind, cfg, scale, sigma_blur, size, sigma):
    """Equations 6 and 7 with the map of the network's middle, taken by the host's own slot."""
    maps = []

    def keep(q, k, v, options):
        b, n, inner = q.shape
        heads = options["n_heads"]
        q_heads, k_heads = (t.view(b, n, heads, inner // heads).transpose(1, 2) for t in (q, k))
        weights = torch.softmax(q_heads @ k_heads.transpose(2, 3) / (inner // heads) ** 0.5, dim=-1)
        maps.append((weights.mean(1).sum(1), options["activations_shape"]))
        return optimized_attention(q, k, v, heads)

    watched = model.clone()
    watched.set_model_attn1_replace(keep, "middle", 0, 0)
    x = sigma * noise(*size)
    looked_at = conds(2) if cfg != 1.0 else conds(1)
    x0 = tiny_models.denoise(watched, x, sigma, looked_at, None, 1.0)
    (received, shape), (h, w) = maps[0], size
    mask = (received > 1.0).view(1, 1, *shape[-2:]).float()
    mask = F.interpolate(mask, (h, w))
    kernel = int(6 * sigma_blur + 1) | 1
    blurred = gaussian_blur(x0, sigma_blur, (min(kernel, 2 * h - 1), min(kernel, 2 * w - 1)))
    degraded = mask * blurred + (1 - mask) * x0
    assert 0 < mask.mean() < 1
    alpha = 1 - sigma if kind is ModelType.FLOW else 1.0
    again = tiny_models.denoise(model, x + alpha * (degraded - x0), sigma, looked_at, None, 1.0)
    return tiny_models.denoise(model, x, sigma, conds(1), conds(2), cfg) + scale * (degraded - again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("size", [(16, 16), (24, 17), (5, 5), (9, 32)])
def test_sag_follows_the_paper(kind, cfg, size):
    model, sigma = tiny_models.sd15(kind=kind, dtype=torch.float64), SIGMAS.get(kind, 3.0)
    expected = sag_by_the_paper(model, kind, cfg, 0.75, 1.0, size, sigma)
    assert nearly(denoise(sag(model), cfg, sigma, size), expected)


def test_at_cfg_one_sag_looks_at_the_positive_also_where_another_node_wants_the_negative(sd15):
    wanted = sd15.clone()
    wanted.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    assert nearly(denoise(sag(wanted), 1.0), denoise(sag(sd15), 1.0))
    assert not nearly(denoise(sag(wanted), 1.001), denoise(sag(sd15), 1.0), 1e-3)


def test_sag_with_the_hosts_kernel_equals_the_hosts_node(model):
    host = comfy_extras.nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0).result[0]
    assert nearly(sample(sag(model, 0.5, 2.0, kernel_size=9)), sample(host))


def test_sag_below_threshold_zero_blurs_the_whole_picture_and_above_the_largest_none(sd15):
    assert nearly(denoise(sag(sd15, threshold=1000.0)), denoise(sd15), 2e-2)
    assert not nearly(denoise(sag(sd15, threshold=0.0)), denoise(sag(sd15)), 1e-3)


def test_the_degraded_pass_keeps_the_label_of_the_negative(sd15):
    labels = []

    def look(n, options):
        labels.append(list(options["cond_or_uncond"]))
        return n

    watched = sag(sd15)
    watched.set_model_patch(look, "middle_patch")
    sample(watched, steps=2)
    assert labels[:: len(labels) // 4] == [[1, 0], [1], [1, 0], [1]]


def test_sag_without_an_active_negative_looks_at_the_positive(sd15):
    """The time range of the negative is over: the host then predicts zeros for it."""
    over = text(2, start_percent=0.0, end_percent=0.0001)
    assert sample(sag(sd15), negative=over).isfinite().all()
    once = [
        tiny_models.cond(text(2)[0][0], timestep_start=0.5, timestep_end=0.1)
    ]  # active between these sigmas, not at 3
    x, positive = 3.0 * noise(), conds(1)
    plain = tiny_models.denoise(sd15, x, 3.0, positive, once, 5.0)
    effect = denoise(sag(sd15), 1.0) - denoise(sd15, 1.0)
    assert nearly(tiny_models.denoise(sag(sd15), x, 3.0, positive, once, 5.0), plain + effect)


def test_a_step_in_which_no_cond_is_active_is_left_as_the_host_makes_it(method, sd15):
    gap = text(1, start_percent=0.0, end_percent=0.2) + text(1, start_percent=0.8, end_percent=1.0)
    assert sample(method(sd15), positive=gap, negative=gap, steps=5).isfinite().all()
    never = [tiny_models.cond(text(2)[0][0], timestep_start=0.5, timestep_end=0.1)]  # not at sigma 3
    x = 3.0 * noise()
    assert torch.equal(*(tiny_models.denoise(m, x, 3.0, never, never, 5.0) for m in (sag(sd15), sd15)))


@pytest.mark.parametrize("area", [(12, 12, 0, 0), (16, 10, 0, 0), (8, 8, 4, 6)])
def test_an_area_on_the_positive_alone_leaves_the_map_of_the_negative(area, sd15):
    """The host copies the negative for that area, and the copy shares the uuid of the positive's."""
    positive = text(1) + text(11, area=area)
    by_hand = text(2) + text(2, area=area)
    found = sample(sag(sd15), positive=positive, negative=text(2))
    assert nearly(found, sample(sag(sd15), positive=positive, negative=by_hand))
    assert not nearly(found, sample(sd15, positive=positive, negative=text(2)), 1e-3)


def test_sag_looks_at_the_whole_latent_when_the_negative_has_areas(sd15):
    """Two areas that cover the latent with one prompt: the map is put together from both crops."""
    halves = text(2, area=(16, 8, 0, 0)) + text(2, area=(16, 8, 0, 8))
    found = sample(sag(sd15), negative=halves, steps=2)
    assert found.isfinite().all()
    assert not nearly(found, sample(sd15, negative=halves, steps=2), 1e-3)


# --- interval ---


def test_outside_the_interval_the_result_is_the_positive_alone(model):
    sampling = model.get_model_object("model_sampling")
    steered = interval(model, 0.3, 0.6)
    for percent, cfg in ((0.1, 1.0), (0.3, 5.0), (0.45, 5.0), (0.6, 5.0), (0.8, 1.0)):
        sigma = float(sampling.percent_to_sigma(percent))
        assert torch.equal(denoise(steered, 5.0, sigma), denoise(model, cfg, sigma))


def test_two_intervals_are_their_overlap(sd15):
    with tiny_models.forwards(sd15) as rows:
        sample(interval(interval(sd15, 0.0, 0.6), 0.3, 1.0), steps=10)
    with tiny_models.forwards(sd15) as expected:
        sample(interval(sd15, 0.3, 0.6), steps=10)
    assert rows == expected


def test_the_negative_stays_evaluated_outside_where_a_node_needs_it(sd15):
    host = comfy_extras.nodes_sag.SelfAttentionGuidance.execute(sd15, 0.5, 2.0).result[0]
    with tiny_models.forwards(sd15) as rows:
        assert sample(interval(host, 0.5, 0.6), steps=6).isfinite().all()
    assert rows == [2, 1] * 6


def test_outside_the_interval_sag_behaves_as_without_cfg(sd15):
    assert torch.equal(denoise(sag(interval(sd15, 0.9, 1.0))), denoise(sag(sd15), 1.0))


def test_the_interval_skips_other_packs_cfg_functions_outside(sd15):
    other = sd15.clone()
    other.set_model_sampler_cfg_function(lambda args: 0 * args["input"])
    assert torch.equal(denoise(interval(other, 0.9, 1.0)), denoise(sd15, 1.0))
    assert torch.equal(denoise(interval(other, 0.0, 1.0)), denoise(other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_a_range_are_inside(kind):
    """Also where the model computes its sigmas in double precision and the sampler's are single."""
    sampling = tiny_models.sd15(kind=kind).get_model_object("model_sampling")
    for percent in [i / 200 for i in range(1, 200)]:
        sigma = float(torch.tensor(float(sampling.percent_to_sigma(percent)), dtype=torch.float32))
        assert Span(percent, 1.0).contains(sigma, Run(), sampling.percent_to_sigma)
        assert Span(0.0, percent).contains(sigma, Run(), sampling.percent_to_sigma)
        assert not Span(0.0, percent).contains(sigma * 0.999, Run(), sampling.percent_to_sigma)
        assert not Span(percent, 1.0).contains(sigma * 1.001, Run(), sampling.percent_to_sigma)


def test_a_range_from_the_start_holds_any_sigma_above():
    to_sigma = {0.0: 1.0, 1.0: 0.0}.__getitem__
    assert Span(0.0, 1.0).contains(1.3, Run(), to_sigma)


# --- rescale ---


@pytest.mark.parametrize("kind", KINDS)
def test_rescale_scales_what_the_network_predicts(kind):
    model, sigma = tiny_models.sd15(kind=kind, dtype=torch.float64), SIGMAS.get(kind, 3.0)
    to_network = {  # the network's output for a denoised x0, up to a factor per image
        ModelType.EPS: lambda x, x0: x - x0,
        ModelType.V_PREDICTION: lambda x, x0: x / (sigma**2 + 1) - x0,
        ModelType.EDM: lambda x, x0: x / (sigma**2 + 1) - x0,
        ModelType.FLOW: lambda x, x0: x - x0,
    }[kind]
    x = sigma * noise(b=2)
    guided, positive, found = (
        to_network(x, denoise(m, cfg, sigma, b=2))
        for m, cfg in ((model, 7.0), (model, 1.0), (rescale(model, 0.7), 7.0))
    )
    for i in range(2):
        expected = 0.7 * guided[i] * positive[i].std() / guided[i].std() + 0.3 * guided[i]
        assert nearly(found[i], expected, 1e-4)
