"""Formulas of the guidance family, each against a few lines written from its paper."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from reins.models.guidance.adaptive_projection import project_guidance
from reins.models.guidance.cfg_zero import optimal_scale
from reins.models.guidance.entmax import entmax15
from reins.models.guidance.frequency_bands import band_factors, split_bands, weight_bands
from reins.models.guidance.image_loss import LOSSES, loss_gradient
from reins.models.guidance.normalized_attention import normalized_guidance
from reins.models.guidance.sparse_cross_attention import sparse_less_dense, sparser_attention
from reins.models.guidance.windows import windows
from reins.tests.helpers.references import apg_by_the_paper, entmax_by_bisection, nag_by_the_paper

SIZES = [(16, 16), (7, 18), (2, 2), (3, 40), (33, 6), (1, 9), (9, 1), (1, 1)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- entmax 1.5 ---


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.float16, 2e-2)])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("tokens", [1, 2, 5, 77, 231])
def test_entmax_has_the_threshold_that_bisection_finds(tokens, spread, dtype, near):
    scores = (spread * draw(40, tokens)).to(dtype)
    found = entmax15(scores)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), entmax_by_bisection(scores), rtol=0, atol=near)
    torch.testing.assert_close(found.double().sum(-1), torch.ones(40, dtype=torch.float64), rtol=0, atol=10 * near)


def test_entmax_gives_exact_zeros_in_the_order_of_the_scores():
    scores = 3 * draw(50, 77)
    found = entmax15(scores)
    assert (found == 0).any(-1).all() and (found > 0).any(-1).all()
    ranked = found.gather(-1, scores.sort(-1, descending=True).indices)
    assert (ranked[:, 1:] <= ranked[:, :-1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_entmax_gives_ties_the_same_share(dtype):
    for count, tokens in ((1, 9), (3, 9), (9, 9), (77, 77)):
        scores = torch.full((tokens,), -50.0, dtype=dtype)
        scores[:count] = 1e3 / 3
        expected = torch.zeros(tokens, dtype=dtype)
        expected[:count] = 1 / count
        torch.testing.assert_close(entmax15(scores), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("large", [1e3, 1e4, 1e6])
def test_entmax_of_large_scores_is_the_largest_alone(large):
    scores = large * torch.tensor([[1.0, -1.0, 0.5, 0.0], [-3.0, -1.0, -2.0, -1.5]])
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    torch.testing.assert_close(entmax15(scores), expected)


# --- PLADIS ---


def test_sparse_less_dense_is_the_difference_of_two_attentions():
    b, heads, n, m, d = 2, 3, 6, 5, 4
    q, k, v = draw(b, n, heads * d), 3 * draw(b, m, heads * d, seed=1), draw(b, m, heads * d, seed=2)
    found = sparse_less_dense(q, k, v, heads)
    for i, h in itertools.product(range(b), range(heads)):
        part = slice(h * d, (h + 1) * d)
        scores = q[i][:, part] @ k[i][:, part].T / d**0.5
        expected = (entmax_by_bisection(scores) - scores.softmax(-1)) @ v[i][:, part]
        torch.testing.assert_close(found[i][:, part], expected)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_sparser_attention_adds_the_difference_to_the_dense_one(scale):
    q, k, v = draw(2, 6, 12), 3 * draw(2, 5, 12, seed=1), draw(2, 5, 12, seed=2)
    parts = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in (q, k, v))
    dense = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    expected = dense + scale * sparse_less_dense(q, k, v, 3)
    torch.testing.assert_close(sparser_attention(q, k, v, 3, scale), expected)


@pytest.mark.parametrize("hidden", [False, float("-inf"), torch.finfo(torch.float32).min, -1e4], ids=str)
def test_sparse_less_dense_leaves_out_what_a_mask_hides(hidden):
    """As the host's masks say it: in truth values, or in numbers that are added to the scores."""
    q, k, v = draw(2, 6, 8), 3 * draw(2, 5, 8, seed=1), draw(2, 5, 8, seed=2)
    mask = torch.ones(2, 1, 1, 5).bool() if hidden is False else torch.zeros(2, 1, 1, 5)
    mask[:, ..., 3:] = hidden
    found = sparse_less_dense(q, k, v, 2, mask)
    torch.testing.assert_close(found, sparse_less_dense(q, k[:, :3], v[:, :3], 2))
    torch.testing.assert_close(sparse_less_dense(q, k, v, 2, mask[:1]), found)


def test_sparse_less_dense_of_one_token_is_nothing_and_of_half_precision_stays_so():
    q, one = draw(1, 6, 8).half(), draw(1, 1, 8, seed=1).half()
    found = sparse_less_dense(q, one, one, 2)
    assert found.dtype == torch.float16 and found.abs().max() == 0


# --- NAG ---


@pytest.mark.parametrize(("scale", "tau", "alpha"), [(2.0, 2.5, 0.5), (5.0, 1.0, 1.0), (11.0, 1.5, 0.25)])
def test_normalized_guidance_follows_the_paper(scale, tau, alpha):
    positive, negative = draw(2, 9, 12), draw(2, 9, 12, seed=1)
    found = normalized_guidance(positive, negative, scale, tau, alpha)
    expected = nag_by_the_paper(positive, negative, scale, tau, alpha)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_normalized_guidance_has_its_limits():
    positive, negative = draw(2, 9, 12), draw(2, 9, 12, seed=1)
    torch.testing.assert_close(normalized_guidance(positive, negative, 0.0, 2.5, 0.5), positive)
    torch.testing.assert_close(normalized_guidance(positive, negative, 2.0, 2.5, 0.0), positive)
    torch.testing.assert_close(normalized_guidance(positive, positive, 9.0, 2.5, 0.7), positive)
    free = normalized_guidance(positive, negative, 2.0, 1e9, 1.0)
    torch.testing.assert_close(free, positive + 2 * (positive - negative))
    nothing = torch.zeros_like(positive)
    assert not normalized_guidance(nothing, nothing, 2.0, 2.5, 0.5).any()
    torch.testing.assert_close(normalized_guidance(nothing, negative, 2.0, 2.5, 0.5), nothing)
    held = normalized_guidance(positive, negative, 100.0, 1.5, 1.0)
    torch.testing.assert_close(held.abs().sum(-1), 1.5 * positive.abs().sum(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e-4, 1.0, 60.0, 300.0])
def test_normalized_guidance_in_half_precision_is_as_in_double(size):
    positive, negative = size * draw(1, 9, 1280), size * draw(1, 9, 1280, seed=1)
    found = normalized_guidance(positive.half(), negative.half(), 2.0, 2.5, 0.5)
    expected = nag_by_the_paper(positive, negative, 2.0, 2.5, 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02 * size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_normalized_guidance_writes_into_its_own_input_what_it_returns_otherwise(dtype):
    rows, negative = draw(3, 9, 12).to(dtype), draw(1, 9, 12, seed=1).to(dtype)
    before, positive = rows.clone(), rows[1:2]
    expected = normalized_guidance(positive, negative, 2.0, 2.5, 0.5)
    assert torch.equal(rows, before)
    normalized_guidance(positive, negative, 2.0, 2.5, 0.5, out=positive)
    assert torch.equal(rows, torch.cat([before[:1], expected, before[2:]]))


def test_normalized_guidance_has_gradients_after_a_picture_with_the_same_numbers():
    """ComfyUI runs nodes in inference mode. What that makes cannot be kept for a call that wants gradients."""
    positive, negative, tau = draw(1, 3, 8), draw(1, 3, 8, seed=1), 1.375  # of no other test
    with torch.inference_mode():
        normalized_guidance(positive, negative, 2.0, tau, 0.5)
    positive.requires_grad_()
    normalized_guidance(positive, negative, 2.0, tau, 0.5).sum().backward()
    assert positive.grad.isfinite().all() and positive.grad.any()


def test_normalized_guidance_of_nothing_is_finite():
    nothing = torch.zeros(1, 3, 8)
    assert normalized_guidance(nothing, nothing, 2.0, 2.5, 0.5).abs().max() == 0
    assert normalized_guidance(nothing, draw(1, 3, 8).float(), 2.0, 2.5, 0.5).isfinite().all()


# --- windows ---


@pytest.mark.parametrize("size", [(64, 64), (5, 200), (17, 9), (8, 8), (3, 3), (9, 8), (128, 96)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 0), (8, 7), (64, 16), (1, 0)])
def test_windows_of_equal_size_cover_every_cell(size, tile, overlap):
    found = windows(size, tile, overlap)
    covered = torch.zeros(size)
    for h, w, top, left in found:
        assert (h, w) == (min(tile, size[0]), min(tile, size[1]))
        assert 0 <= top <= size[0] - h and 0 <= left <= size[1] - w
        covered[top : top + h, left : left + w] += 1
    assert covered.min() >= 1 and len(set(found)) == len(found)
    for starts, side in (({one.top for one in found}, size[0]), ({one.left for one in found}, size[1])):
        starts = sorted(starts)
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert starts[-1] == max(side - tile, 0)
        assert all(step == tile - overlap for step in steps[:-1]) and max(steps, default=0) <= tile - overlap


# --- APG ---


@pytest.mark.parametrize(("eta", "threshold"), [(0.0, 15.0), (1.0, 0.0), (0.3, 2.0), (-1.0, 0.0), (0.0, 1e3)])
def test_the_projected_guidance_of_each_image_follows_the_paper(eta, threshold):
    guidance, positive = draw(3, 4, 6, 5) * torch.tensor([1.0, 9, 0.1]).view(3, 1, 1, 1), draw(3, 4, 6, 5, seed=1)
    found = project_guidance(guidance, positive, eta, threshold)
    for i in range(3):
        torch.testing.assert_close(found[i], apg_by_the_paper(guidance[i], positive[i], eta, threshold))


def test_the_projected_guidance_has_its_limits():
    guidance, positive = 9 * draw(2, 4, 6, 5), draw(2, 4, 6, 5, seed=1)
    assert torch.equal(project_guidance(guidance, positive, 1.0, 0.0), guidance)
    dots = (project_guidance(guidance, positive, 0.0, 0.0) * positive).sum((1, 2, 3))
    torch.testing.assert_close(dots, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    lengths = project_guidance(guidance, positive, 1.0, 2.0).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0))
    nothing = torch.zeros_like(positive)
    assert torch.equal(project_guidance(nothing, positive, 0.0, 15.0), nothing)
    assert project_guidance(guidance, nothing, 0.0, 15.0).isfinite().all()  # no direction to project on


# --- FDG ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 3, 8])
def test_the_bands_sum_to_the_picture_at_any_size(size, levels):
    x = draw(2, 3, *size)
    found = split_bands(x, levels)
    assert len(found) <= levels and all(band.shape == x.shape for band in found)
    torch.testing.assert_close(sum(found), x)
    torch.testing.assert_close(weight_bands(x, 2.5, 2.5, levels), 2.5 * x)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_picture_is_all_low(size):
    x = draw(1, 3, 1, 1).expand(1, 3, *size)
    torch.testing.assert_close(weight_bands(x, 2.0, 7.0, 4), 2 * x)


def test_a_checkerboard_is_nearly_all_high():
    x = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).mul(2).sub(1).double()[None, None]
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(weight_bands(x, 2.0, 7.0, 2)[inner], 7 * x[inner], rtol=0.02, atol=0)


def test_the_factors_go_from_high_to_low_in_equal_steps():
    assert list(band_factors(1.0, 3.0, 5)) == [3.0, 2.5, 2.0, 1.5, 1.0]


# --- CFG-Zero* ---


def test_the_optimal_scale_is_least_squares_per_image():
    positive, negative = draw(3, 4, 6, 5), draw(3, 4, 6, 5, seed=1)
    found = optimal_scale(positive, negative)
    assert found.shape == (3, 1, 1, 1)
    for i in range(3):
        solved = torch.linalg.lstsq(negative[i].reshape(-1, 1), positive[i].reshape(-1, 1)).solution
        torch.testing.assert_close(found[i].flatten(), solved.flatten())
    torch.testing.assert_close(optimal_scale(3 * negative, negative), torch.full((3, 1, 1, 1), 3.0).double())
    assert optimal_scale(positive, torch.zeros_like(positive)).isfinite().all()
    assert optimal_scale(100 * positive.half(), 100 * positive.half()).isfinite().all()


# --- image losses ---


def finite_difference(loss, x, target, direction, step=1e-7):
    return (LOSSES[loss](x + step * direction, target) - LOSSES[loss](x - step * direction, target)) / (2 * step)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (1, 7), (2, 3)])
def test_the_gradient_of_a_loss_is_its_slope(loss, size):
    x, target, direction = (draw(2, 3, *size, seed=i) for i in range(3))
    slope = (loss_gradient(x, target, loss) * direction).sum()
    torch.testing.assert_close(slope, finite_difference(loss, x, target, direction), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (3, 3), (1, 7), (40, 8)])
def test_a_step_of_length_one_never_raises_a_loss(loss, size):
    for seed, scale in itertools.product(range(6), (0.01, 1.0, 30.0)):
        x, target = scale * draw(1, 3, *size, seed=seed), draw(1, 3, *size, seed=seed + 50)
        x = x if seed % 2 else F.avg_pool2d(x, 3, 1, 1)
        gradient = loss_gradient(x, target, loss)
        before, after = LOSSES[loss](x, target), LOSSES[loss](x - gradient, target)
        assert after <= before * (1 + 1e-9)
        assert gradient.norm() <= (x - target).norm() * 1.25 + 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_a_picture_that_is_the_target_is_left_alone(loss):
    x = draw(2, 3, 9, 8)
    assert loss_gradient(x, x, loss).abs().max() < 1e-9


def test_after_one_step_the_histogram_of_each_channel_is_the_targets():
    x, target = draw(2, 3, 8, 8), 3 * draw(2, 3, 8, 8, seed=1) + 1
    moved = x - loss_gradient(x, target, "colour histogram")
    torch.testing.assert_close(moved.flatten(2).sort(-1).values, target.flatten(2).sort(-1).values)
    assert torch.equal(moved.flatten(2).argsort(-1), x.flatten(2).argsort(-1))


def test_low_frequencies_see_brightness_and_edges_do_not():
    x = draw(1, 3, 16, 16)
    torch.testing.assert_close(loss_gradient(x, x + 1, "low frequencies").mean(), torch.tensor(-1.0).double())
    assert max(loss_gradient(x, other, "edges").abs().max() for other in (x + 1, -x)) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_each_picture_of_a_batch_has_its_own_gradient(loss):
    x, target = draw(2, 3, 9, 8), draw(2, 3, 9, 8, seed=1)
    both = loss_gradient(x, target, loss)
    for i in range(2):
        torch.testing.assert_close(both[i], loss_gradient(x[i : i + 1], target[i : i + 1], loss)[0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_gradient_is_finite_and_had_inside_inference_mode(loss, dtype):
    expected = loss_gradient(draw(1, 3, 9, 8), draw(1, 3, 9, 8, seed=1), loss)
    with torch.inference_mode():
        x, target = draw(1, 3, 9, 8, dtype=dtype), draw(1, 3, 9, 8, seed=1, dtype=dtype)
        found = loss_gradient(x, target, loss)
        flat = loss_gradient(torch.ones_like(x), target, loss)
    assert not found.requires_grad and found.dtype == dtype and flat.isfinite().all()
    # Rounding may swap two values that are nearly the same, and with them what they are drawn to.
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.15 if loss == "colour histogram" else 0.02)
