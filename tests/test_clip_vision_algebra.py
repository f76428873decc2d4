"""Turning, averaging and moving embeddings, against the formulas written out; no host needed."""

from __future__ import annotations

import math

import pytest
import torch
from reins.models.clip_vision.algebra import (
    frame_times,
    mean_directions,
    mean_embeds,
    move_by_text,
    parse_mean_weights,
    slerp,
    slerp_embeds,
    text_diff,
)
from torch.nn.functional import normalize


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shoemake(u, v, t):
    """For two vectors of any length; Shoemake 1985, with the length in a straight line."""
    cosine = float(u @ v / u.norm() / v.norm())
    w = math.acos(cosine)
    turned = math.sin((1 - t) * w) / math.sin(w) * u / u.norm() + math.sin(t * w) / math.sin(w) * v / v.norm()
    return turned * ((1 - t) * u.norm() + t * v.norm())


A, B = random(3, 7), 4 * random(3, 7, seed=1)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("way", [slerp, slerp_embeds])
def test_slerp_is_shoemakes_with_the_length_in_a_straight_line(way, t):
    expected = torch.stack([shoemake(u, v, t) for u, v in zip(A, B, strict=True)])
    torch.testing.assert_close(way(A, B, t), expected)
    torch.testing.assert_close(way(A[:1], B, t)[2], shoemake(A[0], B[2], t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_have_the_inputs_values_exactly_and_are_copies(dtype):
    a, b = A.to(dtype), B.to(dtype)
    for t, end in ((0.0, a), (1.0, b)):
        found = slerp(a, b, t)
        assert torch.equal(found, end)
        assert found.data_ptr() != end.data_ptr()
    assert torch.equal(slerp(a[:1], b, 0.0), a[:1].expand(3, -1))
    assert slerp(a[:1], b, 0.0).is_contiguous()


def test_steps_of_a_slerp_turn_by_the_same_angle():
    steps = normalize(torch.stack([slerp(A, B, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]), dim=-1)
    angles = (steps[1:] * steps[:-1]).sum(-1).acos()
    torch.testing.assert_close(angles, angles[:1].expand_as(angles))


@pytest.mark.parametrize("tilt", [0.0, 1e-7, 1e-4, 1e-3, 1e-2])
def test_nearly_parallel_embeddings_turn_without_noise_or_a_jump(tilt):
    b = 3 * A + tilt * B
    expected = torch.stack([shoemake(u, v, 0.25) for u, v in zip(A, b, strict=True)]) if tilt else 1.5 * A
    torch.testing.assert_close(slerp_embeds(A.float(), b.float(), 0.25), expected.float(), rtol=1e-5, atol=1e-5)
    many = random(200, 7).float()  # of some the cosine is rounded to more than 1
    torch.testing.assert_close(slerp(many, 3 * many, 0.25), 1.5 * many)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_opposite_embeddings_have_no_shortest_way_and_tokens_go_straight(noise):
    a = A.float()
    b = -2 * a + noise * B.float()
    with pytest.raises(ValueError, match=r"opposite directions \(cosine -1\.0+\)\. Choose other pictures"):
        slerp_embeds(a, b, 0.5)
    if noise < 1e-3:
        torch.testing.assert_close(slerp(a, b, 0.25), 0.5 * (0.75 + 0.25 * 2) * a, rtol=1e-4, atol=1e-4)
    assert slerp_embeds(a, -a + 0.05 * B.float(), 0.5).isfinite().all()


def test_zeros_are_no_direction():
    zeros = torch.zeros_like(A)
    for a, b, name in ((zeros, A, "a"), (A, zeros, "b")):
        with pytest.raises(ValueError, match=f"^{name} should hold embeddings that point somewhere"):
            slerp_embeds(a, b, 0.5)
        torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_frames_go_from_one_end_to_the_other():
    assert frame_times(0.3, 1) == [0.3]
    assert frame_times(0.3, 2) == [0.0, 1.0]
    assert frame_times(0.3, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(times[0] == 0 and times[-1] == 1 for times in (frame_times(0.5, n) for n in range(2, 200)))


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0.5, 2], [1, -0.5, 2]])
@pytest.mark.parametrize("mean", [mean_embeds, mean_directions])
def test_the_mean_is_of_directions_and_as_long_as_the_mean_length(mean, weights):
    direction = sum(w * z / z.norm() for w, z in zip(weights, B, strict=True))
    length = sum(abs(w) * z.norm() for w, z in zip(weights, B, strict=True)) / sum(map(abs, weights))
    torch.testing.assert_close(mean(B, weights), (direction / direction.norm() * length)[None])
    torch.testing.assert_close(mean(B, [3 * w for w in weights]), mean(B, weights))


def test_the_mean_of_two_equal_weights_is_the_middle_of_the_slerp():
    torch.testing.assert_close(mean_embeds(torch.stack([A[0], B[0]]), [1, 1]), slerp(A[:1], B[:1], 0.5))


def test_tokens_are_averaged_one_by_one():
    tokens = random(2, 5, 7)
    found = mean_directions(tokens, [1, 2])
    assert found.shape == (1, 5, 7)
    torch.testing.assert_close(found[:, 3], mean_directions(tokens[:, 3], [1, 2]))
    assert mean_directions(torch.cat([tokens[:1], -tokens[:1]]), [1, 1]).abs().max() < 1e-9


def test_a_mean_of_one_keeps_its_values_exactly():
    a = A.float()
    assert torch.equal(mean_embeds(a[:1], [0.7]), a[:1])
    assert torch.equal(mean_embeds(a, [0, 2, 0]), a[1:2])
    assert torch.equal(mean_embeds(a[:1], [-1]), -a[:1])


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="cancel each other"):
        mean_embeds(torch.cat([A[:1], -3 * A[:1]]), [1, 1])
    with pytest.raises(ValueError, match="cancel each other"):
        mean_embeds(torch.cat([A[:1], 3 * A[:1]]), [1, -1])
    with pytest.raises(ValueError, match="one is all zeros"):
        mean_embeds(torch.cat([A[:1], 0 * A[:1]]), [1, 1])


def test_weights_are_one_for_each_output():
    assert parse_mean_weights("", 3) == parse_mean_weights(" , ", 3) == [1.0, 1.0, 1.0]
    assert parse_mean_weights(" 1, -0.5,2 ,", 3) == [1.0, -0.5, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("1, a", r"weights: '1, a' is not a list of numbers\. Write one"), ("nan, 1", "is not a list"),
     ("inf, 1", "is not a list"), ("1", "each of the 2 connected outputs, but are 1. Write as many"),
     ("1,2,3", "but are 3"), ("0, 0", "should not all be 0")],
)  # fmt: skip
def test_wrong_weights_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mean_weights(text, 2)


@pytest.mark.parametrize("theta", [0.25, 0.5, 1.0])
def test_a_text_diff_is_that_of_dall_e_2(theta):
    source, target = 5 * random(1, 7, seed=2), 9 * random(1, 7, seed=3)
    difference = target[0] / target.norm() - source[0] / source.norm()
    z_d = difference / difference.norm()
    found = move_by_text(B, text_diff(source, target), theta)
    if theta == 1:
        expected = z_d * B.norm(dim=-1, keepdim=True)
    else:
        expected = torch.stack([shoemake(z_i, z_d * z_i.norm(), theta) for z_i in B])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=-1), B.norm(dim=-1))


def test_texts_that_say_the_same_give_no_direction():
    with pytest.raises(ValueError, match="to this text encoder they are the same"):
        text_diff(A[:1].float(), 2 * A[:1].float())
    assert text_diff(A[:1], A[:1] + 0.01 * B[:1]).norm() == pytest.approx(1)
