"""Beside caches of other packs, which answer some steps without the network, and beside their context windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from reins.models.guidance.blur import gaussian_blur
from reins.tests.helpers.methods import sag
from reins.tests.helpers.other_packs import cached, motion_windows
from reins.tests.helpers.predictions import conds, denoise, in_one_run
from reins.tests.helpers.tiny_models import nearly, noise, sample

STEPS = 20
FIRST, SECOND = 9.0, 3.0  # noise levels of two steps, of which a cache answers the second


def of_host(name, model, threshold=0.2):
    """EasyCache or LazyCache of the host."""
    node = getattr(pytest.importorskip("comfy_extras.nodes_easycache"), name)
    return node.execute(model, threshold, 0.15, 0.95, False).result[0]


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_sag_works_beside_the_hosts_caches_and_leaves_them_alone(name, start, sd15):
    ran = []
    hook = sd15.model.diffusion_model.middle_block.register_forward_pre_hook(lambda *_: ran.append(1))
    expected = sample(of_host(name, sd15), steps=STEPS)
    hook.remove()
    assert len(ran) < STEPS
    assert nearly(sample(of_host(name, sag(sd15, 1e-7, start=start)), steps=STEPS), expected)
    assert nearly(sample(sag(of_host(name, sd15), 1e-7, start=start), steps=STEPS), expected)
    assert not nearly(sample(of_host(name, sag(sd15, start=start)), steps=STEPS), expected, 1e-3)


def two_chunks(options):
    """Whether a cache answers: the positive and the negative of the second step, but no call of a method."""
    return len(options["uuids"]) == 2 and float(options["sigmas"][0]) == SECOND


def attended(model, x, sigma):
    """How much each cell is attended in the middle for the negative (h, w), by the host's own slot."""
    maps = []

    def keep(q, k, v, options):
        heads = options["n_heads"]
        q_heads, k_heads = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
        scores = q_heads @ k_heads.transpose(2, 3) / q_heads.shape[-1] ** 0.5
        maps.append(scores.softmax(-1).mean(1).sum(1).view(1, *options["activations_shape"][-2:]))
        return optimized_attention(q, k, v, heads)

    watched = model.clone()
    watched.set_model_attn1_replace(keep, "middle", 0, 0)
    denoise(watched, 1.0, sigma, x=x, positive=conds(2))
    return maps[0]


@pytest.mark.parametrize("order", ["before", "after"])
def test_in_a_step_that_a_cache_answered_sag_takes_the_last_map(order, sd15):
    points = [(FIRST * noise(seed=1), FIRST), (SECOND * noise(seed=2), SECOND)]
    steered = cached(sag(sd15), two_chunks) if order == "after" else sag(cached(sd15, two_chunks))
    found = in_one_run(steered, points)[1]

    plain, x0 = (in_one_run(cached(sd15, two_chunks), points, cfg)[1] for cfg in (5.0, 0.0))
    mask = F.interpolate((attended(sd15, *points[0]) > 1.0)[None].to(x0), (16, 16))
    assert 0 < mask.mean() < 1
    degraded = mask * gaussian_blur(x0, 1.0, (7, 7)) + (1 - mask) * x0
    x, sigma = points[1]
    again = denoise(sd15, 1.0, sigma, x=x + degraded - x0, positive=conds(2))
    assert nearly(found, plain + 0.75 * (degraded - again))
    assert not nearly(found, plain, 1e-3)


def test_sag_asks_once_more_if_the_first_step_it_acts_in_was_cached(sd15):
    points = [(FIRST * noise(seed=1), FIRST), (SECOND * noise(seed=2), SECOND)]
    late = sag(sd15, start=0.3)
    assert SECOND < sd15.get_model_object("model_sampling").percent_to_sigma(0.3) < FIRST
    assert not nearly(in_one_run(cached(late, two_chunks), points)[1], in_one_run(cached(sd15, two_chunks), points)[1])


def test_if_the_middle_never_ran_sag_says_that_a_cache_answered(sd15):
    with pytest.raises(RuntimeError, match=r"that block has not run yet: another pack leaves it out or answers"):
        sample(cached(sag(sd15), lambda options: True))


def test_windows_of_another_pack_over_the_batch_change_no_picture(method, sd15):
    """Without a motion model every picture is computed alone, so windows over the batch make no difference."""
    start = torch.cat([noise(seed=i) for i in range(5)])
    expected = sample(method(sd15), batch=5, start=start)
    assert nearly(sample(method(motion_windows(sd15)), batch=5, start=start), expected)
    assert nearly(sample(motion_windows(method(sd15)), batch=5, start=start), expected)
