"""SAG's map and degraded picture (2210.00939), each against a few lines written from the paper."""

from __future__ import annotations

import pytest
import torch
from reins.models.guidance.self_attention import attention_received, degrade, enlarge, kernel_sizes
from reins.tests.helpers.references import blur_by_the_sum


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_map_is_the_mean_over_heads_of_the_sum_over_queries():
    b, n, heads, d = 2, 12, 3, 4
    q, k = random(b, n, heads * d), random(b, n, heads * d, seed=1)
    expected = torch.zeros(b, n)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        expected += torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / d**0.5, dim=-1).sum(1) / heads
    torch.testing.assert_close(attention_received(q, k, heads), expected)


def test_the_average_of_the_map_is_one_also_when_queries_were_merged():
    assert attention_received(random(1, 5, 8), random(1, 20, 8), 2).mean() == pytest.approx(1.0)


def test_half_precision_maps_are_computed_in_single():
    q = 30 * random(1, 16, 8)
    exact, half = attention_received(q.half().float(), q.half().float(), 1), attention_received(q.half(), q.half(), 1)
    assert torch.equal(exact, half)


def test_only_attended_places_are_blurred():
    x, received = random(1, 2, 8, 8), random(1, 8, 8, seed=3) + 1
    out = degrade(x, received, sigma=1.0, threshold=1.0, kernel_size=9)
    mask = (received > 1.0)[:, None].expand_as(x)
    torch.testing.assert_close(out[mask], blur_by_the_sum(x, 1.0, 9, 9)[mask])
    assert torch.equal(out[~mask], x[~mask])


@pytest.mark.parametrize(
    ("sigma", "wanted", "shape", "sizes"),
    [(1.0, 0, (64, 64), (7, 7)), (2.0, 0, (64, 64), (13, 13)), (2.0, 9, (64, 64), (9, 9)), (2.0, 8, (64, 64), (9, 9)),
     (10.0, 0, (5, 40), (9, 61)), (1.0, 0, (1, 2), (1, 3))],
)  # fmt: skip
def test_the_kernel_is_long_enough_and_fits_the_picture(sigma, wanted, shape, sizes):
    assert kernel_sizes(sigma, wanted, shape) == sizes


def test_the_map_is_enlarged_by_repeating_cells():
    small = random(1, 2, 3)
    assert torch.equal(enlarge(small, (4, 6)), small.repeat_interleave(2, 1).repeat_interleave(2, 2))
