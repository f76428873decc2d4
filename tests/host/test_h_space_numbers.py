"""What a captured direction reaches on the demo model: the size moves, both ways, and what the words say stays."""

from __future__ import annotations

import os

import pytest
from reins.demo.training.h_space_numbers import STRENGTH, kept, load_h_space_demo, random_direction

COUNT = 8 if os.environ.get("REINS_BRIEF") else 32 if os.environ.get("REINS_FULL") else 12


@pytest.fixture(scope="module")
def sized():
    return load_h_space_demo(COUNT)


@pytest.fixture(scope="module")
def direction(sized):
    return sized.capture()


@pytest.fixture(scope="module")
def plain(sized, direction):
    return sized.draw(direction, 0.0)


@pytest.fixture(scope="module")
def moved(sized, direction):
    """Pictures of more and of less size, from the same noise."""
    return [sized.draw(direction, sign * STRENGTH) for sign in (1, -1)]


def larger(found, other):
    """Mean of how much larger the shapes of the first are, in pixels; small and large differ by 2.6."""
    return (found.radius - other.radius).mean()


def test_a_captured_direction_moves_the_size_both_ways(plain, moved):
    more, less = moved
    assert larger(more, less) > 0.3
    assert larger(more, plain) > 0.03
    assert larger(plain, less) > 0.1


def test_and_leaves_what_the_words_say(sized, moved):
    for found in moved:
        rates = kept(found, sized.words)
        assert rates.mean() >= 0.95 and rates.min() >= 0.8  # the place slips in some


def test_a_direction_of_the_same_length_but_of_no_meaning_does_not(sized, direction, plain, moved):
    other = sized.draw(random_direction(direction), -STRENGTH)
    assert abs(larger(plain, other)) < 0.6 * larger(plain, moved[1])


def test_asymmetry_is_what_makes_it_move(sized, direction, plain, moved):
    """The paper's point: with h edited in both places the two changes nearly cancel."""
    symmetric = sized.draw(direction, -STRENGTH, "symmetric")
    assert abs(larger(plain, symmetric)) < 0.6 * larger(plain, moved[1])
