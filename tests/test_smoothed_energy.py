"""SEG's blurred queries (2408.00760): formula, limits, grids of any shape."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from reins.models.guidance.smoothed_energy import blur_queries, kernel_size
from reins.tests.helpers.references import blur_by_the_sum


def queries(h, w, b=2, c=6):
    return torch.randn(b, h * w, c, generator=torch.Generator().manual_seed(h * w))


@pytest.mark.parametrize(("h", "w"), [(8, 8), (3, 24), (24, 3), (7, 5)])
def test_queries_are_blurred_over_their_grid(h, w):
    q, sigma = queries(h, w), 1.0
    image = rearrange(q, "b (h w) c -> b c h w", h=h, w=w)
    expected = blur_by_the_sum(image, sigma, kernel_size(sigma, h), kernel_size(sigma, w))
    torch.testing.assert_close(blur_queries(q, (h, w), sigma), rearrange(expected, "b c h w -> b (h w) c"))


@pytest.mark.parametrize("sigma", [-1.0, 1e5, float("inf")])
def test_an_infinite_blur_gives_every_place_the_mean_query(sigma):
    q = queries(4, 6)
    out = blur_queries(q, (4, 6), sigma)
    assert torch.equal(out, q.mean(1, keepdim=True).expand_as(q))


def test_no_blur_gives_the_queries_themselves():
    q = queries(4, 6)
    assert blur_queries(q, (4, 6), 0.0) is q
    torch.testing.assert_close(blur_queries(q, (4, 6), 0.05), q)


@pytest.mark.parametrize(("h", "w"), [(2, 64), (64, 2), (1, 9), (16, 128)])
@pytest.mark.parametrize("sigma", [0.5, 10.0, 9999.0])
def test_wide_and_tall_grids_take_any_blur(h, w, sigma):
    assert blur_queries(queries(h, w, b=1), (h, w), sigma).isfinite().all()


@pytest.mark.parametrize(("sigma", "size"), [(1.0, 7), (1.5, 9), (0.1, 1), (2.0, 13), (10.0, 61)])
def test_the_kernel_has_the_official_length(sigma, size):
    assert kernel_size(sigma, 1000) == size


@pytest.mark.parametrize(("side", "size"), [(8, 9), (9, 9), (1, 1), (2, 3)])
def test_the_kernel_is_capped_by_the_grid(side, size):
    assert kernel_size(100.0, side) == size
