"""LoRA of several projections in one product, against each LoRA alone, without the host."""

from __future__ import annotations

import pytest
import torch
from reins.models.unicon.network import AttentionLoRA, JointAttention, JointSizes, Projected
from reins.models.unicon.stacks import PROJECTIONS, AttentionPlace, LowRank, stacked, stacks_of
from torch import nn
from torch.func import functional_call

WIDTH, CONTEXT, ROWS = 4, 3, slice(1, 3)
RANKS = (2, 1, 3, 2)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loras(of_text=False):
    inputs = (WIDTH, CONTEXT, CONTEXT, WIDTH) if of_text else (WIDTH,) * 4
    return [LowRank(entering, rank, WIDTH) for entering, rank in zip(inputs, RANKS, strict=True)]


def drawn_weights(stem, of_text=False, seed=0):
    found = {}
    for i, (name, sizes) in enumerate(zip(PROJECTIONS, loras(of_text), strict=True)):
        found[f"{stem}.{name}.down.weight"] = drawn(sizes.rank, sizes.inputs, seed=seed + 2 * i)
        found[f"{stem}.{name}.up.weight"] = drawn(sizes.outputs, sizes.rank, seed=seed + 2 * i + 1)
    return found


def alone(weights, stem, name, x):
    return x @ weights[f"{stem}.{name}.down.weight"].T @ weights[f"{stem}.{name}.up.weight"].T


def loaded(network, weights):
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def of_attention(of_text):
    place = AttentionPlace("a", loras(of_text), of_text)
    weights = drawn_weights("a", of_text)
    network = AttentionLoRA(place, nn, dtype=torch.float64)
    found = {key.removeprefix("a."): value for key, value in stacked(weights, [place]).items()}
    return loaded(network, found), weights


def test_projections_of_one_tensor_are_one_stack():
    assert [stack.projections for stack in stacks_of(loras(), False)] == [("to_q", "to_k", "to_v"), ("to_out",)]
    apart = [("to_q",), ("to_k", "to_v"), ("to_out",)]
    assert [stack.projections for stack in stacks_of(loras(True), True)] == apart
    assert [stack.projections for stack in stacks_of(loras(), True)] == apart  # text as wide as the picture
    assert [stack.sizes.rank for stack in stacks_of(loras(), False)] == [3, 2]


@pytest.mark.parametrize(
    ("of_text", "entering"),
    [
        (False, "one tensor"),
        (False, "three tensors"),
        (False, "three tensors, the last ones longer"),
        (False, "another value"),
        (True, "one text"),
        (True, "two texts"),
    ],
)
def test_each_projection_gets_its_own_lora_on_the_rows_that_are_named(of_text, entering):
    """Another pack may give an attention other tensors for k and v than for q."""
    network, weights = of_attention(of_text)
    x, width = drawn(4, 6, WIDTH, seed=20), CONTEXT if of_text else WIDTH
    text = drawn(4, 6 + 3 * ("longer" in entering or of_text), width, seed=21)
    inputs = {
        "one tensor": (x, x, x),
        "another value": (x, x, text),
        "one text": (x, text, text),
    }.get(entering, (x, text, 2 * text))
    bases = [drawn(4, part.shape[1], WIDTH, seed=30 + i) for i, part in enumerate(inputs)]
    kept = [base.clone() for base in bases]
    found = network.on_projections(bases, inputs, ROWS)
    for name, base, part, projected in zip(PROJECTIONS[:3], kept, inputs, found, strict=True):
        expected = base.clone()
        expected[ROWS] += alone(weights, "a", name, part[ROWS])
        assert torch.allclose(projected, expected, rtol=0, atol=1e-12)
    assert all(torch.equal(base, before) for base, before in zip(bases, kept, strict=True))


def test_the_output_gets_its_lora_and_the_given_one_stays_as_it_was():
    network, weights = of_attention(False)
    out, attended = drawn(4, 6, WIDTH, seed=20), drawn(4, 6, WIDTH, seed=21)
    expected = out.clone()
    expected[ROWS] += alone(weights, "a", "to_out", attended[ROWS])
    given = out.clone()
    assert torch.allclose(network.on_output(given, attended, ROWS), expected, rtol=0, atol=1e-12)
    assert torch.equal(given, out)


@pytest.mark.parametrize("bases_in", [torch.float32, torch.bfloat16])
def test_under_autocast_types_may_differ(bases_in):
    """As in training: the first product is in bfloat16 and the weights are not."""
    network, weights = of_attention(False)
    x, bases = drawn(4, 6, WIDTH, seed=20), [drawn(4, 6, WIDTH, seed=30 + i) for i in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = network.float().on_projections([base.to(bases_in) for base in bases], (x.float(),) * 3, ROWS)
    for name, base, projected in zip(PROJECTIONS[:3], bases, found, strict=True):
        base[ROWS] += alone(weights, "a", name, x[ROWS])
        assert projected.dtype == bases_in
        assert torch.allclose(projected.double(), base, rtol=0.02, atol=0.1)


def attention(q, k, v):
    return (q @ k.transpose(1, 2)).softmax(-1) @ v


def joint(post):
    """Sizes, weights by single LoRA, and the places of the LoRA."""
    weights = drawn_weights("xy", seed=40) | drawn_weights("yx", seed=60)
    width = WIDTH * (2 if post == "conv_fuse" else 1)
    places = [AttentionPlace(stem, loras(), False) for stem in ("xy", "yx")]
    return JointSizes(loras(), loras(), WIDTH, post), {**weights, "post.weight": drawn(width, width, seed=80)}, places


X, Y = (Projected(*drawn(4, 2, 6, WIDTH, seed=seed)) for seed in (90, 91))
OUTPUT = drawn(WIDTH, WIDTH, seed=92)


def to_out(attended):
    return attended @ OUTPUT


def joint_by_hand(weights, post):
    """Section 3.2, LoRA by LoRA."""

    def with_lora(stem, of_one):
        parts = zip(PROJECTIONS[:3], of_one[1:], strict=True)
        return [base + alone(weights, stem, name, of_one.hidden) for name, base in parts]

    (qx, kx, vx), (qy, ky, vy) = with_lora("xy", X), with_lora("yx", Y)
    of_x, of_y = attention(qx, ky, vy), attention(qy, kx, vx)
    out_x = to_out(of_x) + alone(weights, "xy", "to_out", of_x)
    out_y = to_out(of_y) + alone(weights, "yx", "to_out", of_y)
    if post == "conv_fuse":
        return (torch.cat([out_x, out_y], -1) @ weights["post.weight"].T).chunk(2, -1)
    return out_x @ weights["post.weight"].T, out_y @ weights["post.weight"].T


@pytest.mark.parametrize("post", ["conv_fuse", "conv"])
def test_the_joint_attention_is_that_of_the_paper(post):
    sizes, weights, places = joint(post)
    network = loaded(JointAttention(sizes, nn, dtype=torch.float64), stacked(weights, places))
    for term, wanted in zip(network(X, Y, attention, to_out), joint_by_hand(weights, post), strict=True):
        assert torch.allclose(term, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("post", ["conv_fuse", "conv"])
def test_gradients_reach_each_lora_of_the_joint_attention(post):
    """In training the matrices are stacked anew in each step."""
    sizes, weights, places = joint(post)
    leaves = {key: value.requires_grad_() for key, value in weights.items()}
    network = JointAttention(sizes, nn, dtype=torch.float64)

    def gradients(terms):
        return torch.autograd.grad(terms[0].sin().sum() + 2 * terms[1].cos().sum(), [*leaves.values()])

    found = gradients(functional_call(network, stacked(leaves, places), (X, Y, attention, to_out)))
    for gradient, wanted in zip(found, gradients(joint_by_hand(leaves, post)), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-11)


@pytest.mark.parametrize("of_text", [False, True])
def test_gradients_reach_each_lora_of_an_attention(of_text):
    place, weights = AttentionPlace("a", loras(of_text), of_text), drawn_weights("a", of_text)
    leaves = {key: value.requires_grad_() for key, value in weights.items() if "to_out" not in key}
    x, text = drawn(4, 6, WIDTH, seed=20), drawn(4, 6, CONTEXT if of_text else WIDTH, seed=21)
    entering, bases = (x, text, text), [drawn(4, 6, WIDTH, seed=30 + i) for i in range(3)]
    network, weights = AttentionLoRA(place, nn, dtype=torch.float64), {**weights, **leaves}
    for name, value in stacked(weights, [place]).items():
        layer = network.get_submodule(name.removeprefix("a.").removesuffix(".weight"))
        del layer.weight
        layer.weight = value

    def gradients(projected):
        return torch.autograd.grad(sum((i + 1) * p.sin().sum() for i, p in enumerate(projected)), [*leaves.values()])

    by_hand = [base.clone() for base in bases]
    for base, name, part in zip(by_hand, PROJECTIONS, entering, strict=False):
        base[ROWS] += alone(weights, "a", name, part[ROWS])
    found = gradients(network.on_projections(bases, entering, ROWS))
    for gradient, wanted in zip(found, gradients(by_hand), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-11)
