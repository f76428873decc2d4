"""Fades of the scale, and the way back from a sigma to a percent."""

from __future__ import annotations

import pytest
from reins.models.guidance.fade import adaptive, linear, percent_of


def test_linear_falls_from_one_to_zero_over_the_range():
    assert [linear(p, 0.2, 0.6) for p in (0.2, 0.3, 0.4, 0.6)] == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert linear(0.5, 0.5, 0.5) == 1.0


def test_adaptive_is_the_peers_curve():
    for strength, timestep in ((0.1, 999), (0.1, 0), (0.18, 400), (0.3, 800)):
        expected = max(0.0, 5.0 - 5.0 * strength**4 * (1000 - timestep))  # its words: s - s * a^4 * (1000 - t)
        percent = 1 - timestep / 999
        assert 5.0 * adaptive(strength)(percent, 0.0, 1.0) == pytest.approx(expected)


def test_percent_of_inverts_a_table_of_sigmas():
    table = [1e9, 10.0, 4.0, 1.0, 0.0]  # percents 0, 1/4, 1/2, 3/4, 1
    assert [percent_of(s, table) for s in (10.0, 4.0, 1.0, 0.0)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert percent_of(7.0, table) == pytest.approx(0.375)
    assert percent_of(2e9, table) == 0.0
    assert percent_of(-1.0, table) == 1.0
