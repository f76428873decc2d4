"""Guidance rescale (Lin et al., equations 15 and 16)."""

from __future__ import annotations

import torch
from reins.models.guidance.rescale import rescale_guidance


def predictions():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(2, 4, 6, 5, generator=generator)
    guided = positive * torch.tensor([3.0, 0.5]).view(2, 1, 1, 1) + torch.randn(2, 4, 6, 5, generator=generator)
    return guided, positive


def test_the_formula_of_the_paper_per_image():
    guided, positive = predictions()
    for i in range(2):
        rescaled = guided[i] * (positive[i].std() / guided[i].std())
        expected = 0.7 * rescaled + 0.3 * guided[i]
        torch.testing.assert_close(rescale_guidance(guided, positive, 0.7)[i], expected)


def test_full_rescale_gives_the_deviation_of_the_positive():
    guided, positive = predictions()
    out = rescale_guidance(guided, positive, 1.0)
    torch.testing.assert_close(out.std((1, 2, 3)), positive.std((1, 2, 3)))


def test_a_constant_sum_stays_finite():
    assert rescale_guidance(torch.zeros(1, 4, 3, 3), torch.randn(1, 4, 3, 3), 0.7).isfinite().all()
