"""Gaussian blur against a direct two-dimensional sum, and at its limits."""

from __future__ import annotations

import pytest
import torch
from reins.models.guidance.blur import gaussian_blur, gaussian_weights
from reins.tests.helpers.references import blur_by_the_sum


@pytest.mark.parametrize(("h", "w", "rows", "columns"), [(8, 8, 7, 7), (5, 16, 5, 9), (16, 3, 9, 5), (1, 6, 1, 5)])
def test_the_blur_is_the_weighted_mean_of_the_neighbours(h, w, rows, columns):
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gaussian_blur(x, 1.3, (rows, columns)), blur_by_the_sum(x, 1.3, rows, columns))


def test_a_flat_picture_stays_flat():
    x = torch.full((1, 2, 6, 9), 0.7)
    torch.testing.assert_close(gaussian_blur(x, 2.0, (7, 7)), x)


def test_a_very_narrow_blur_changes_nothing_and_is_finite():
    x = torch.randn(1, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gaussian_blur(x, 0.01, (3, 3)), x)


def test_the_weights_sum_to_one_and_are_symmetric():
    weights = gaussian_weights(9, 2.0)
    assert weights.sum() == pytest.approx(1.0)
    assert torch.equal(weights, weights.flip(0))
    assert float(weights[4] / weights[3]) == pytest.approx(float(torch.tensor(1 / 8).exp()))
