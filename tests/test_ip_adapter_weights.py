"""Weight types, scalings and combinations against the formulas they were published with."""

from __future__ import annotations

import math

import pytest
import torch
from reins.models.clip_vision.algebra import slerp
from reins.models.ip_adapter.combine import combine, copy_logits, parse_weights
from reins.models.ip_adapter.weights import (
    PEER_NAMES,
    WEIGHT_TYPES,
    Strength,
    TransformerPlace,
    parse_layer_weights,
    weight_keys_and_values,
)


def layout(inputs, outputs, middle=True):
    return [
        *(TransformerPlace("input", n) for n in inputs), *([TransformerPlace("middle", 0)] if middle else []),
        *(TransformerPlace("output", n) for n in outputs),
    ]  # fmt: skip


LAYOUTS = {
    "sd15": layout((1, 2, 4, 5, 7, 8), range(3, 12)),
    "sdxl": layout((4, 5, 7, 8), range(6)),
}
EASED = {
    "ease in": lambda t, n: 0.05 + 0.95 * (1 - t / n),
    "ease out": lambda t, n: 0.05 + 0.95 * t / n,
    "ease in-out": lambda t, n: 0.05 + 0.95 * (1 - abs(t - n / 2) / (n / 2)),
    "reverse in-out": lambda t, n: 0.05 + 0.95 * abs(t - n / 2) / (n / 2),
}
STYLE15 = {0, 1, 2, 3, *range(9, 16)}


def numbered(name, weight_type, **settings):
    """{number: (weight, swapped)} of the layers that listen."""
    places = LAYOUTS[name]
    found = Strength(weight_type=weight_type, **settings).by_place(places)
    return {places.index(place): tuple(layer) for place, layer in found.items()}


def plain(weights):
    return {number: (pytest.approx(weight), False) for number, weight in weights.items()}


@pytest.mark.parametrize(("name", "count", "middle"), [("sd15", 16, 6), ("sdxl", 11, 4)])
def test_layers_are_counted_as_the_model_runs_them_with_the_middle(name, count, middle):
    assert len(LAYOUTS[name]) == count
    assert LAYOUTS[name][middle].block == "middle"
    assert numbered(name, "linear", weight=0.7) == plain(dict.fromkeys(range(count), 0.7))


@pytest.mark.parametrize("weight_type", EASED)
@pytest.mark.parametrize("name", LAYOUTS)
def test_eased_types_follow_their_curve(name, weight_type):
    count = len(LAYOUTS[name])
    expected = {t: 0.8 * EASED[weight_type](t, count) for t in range(count)}
    assert numbered(name, weight_type, weight=0.8) == plain(expected)


@pytest.mark.parametrize(
    ("weight_type", "weak"),
    [("weak input", "input"), ("weak middle", "middle"), ("weak output", "output"), ("strong middle", "input output")],
)
def test_weak_types_leave_a_fifth_in_their_blocks(weight_type, weak):
    expected = {t: 0.2 if place.block in weak.split() else 1.0 for t, place in enumerate(LAYOUTS["sd15"])}
    assert numbered("sd15", weight_type) == plain(expected)


SETS = [
    ("sdxl", "style", {6: 0.5}),
    ("sdxl", "composition", {3: 0.5}),
    ("sdxl", "strong style", {t: 0.5 for t in range(11) if t != 3}),
    ("sdxl", "style and composition", {3: 0.9, 6: 0.5}),
    ("sdxl", "strong style and composition", {t: 0.9 if t == 3 else 0.5 for t in range(11)}),
    ("sd15", "style", dict.fromkeys(STYLE15, 0.5)),
    ("sd15", "composition", {4: 0.125, 5: 0.5}),
    ("sd15", "strong style", {t: 0.5 for t in range(16) if t not in (4, 5)}),
    ("sd15", "style and composition", {**dict.fromkeys(STYLE15, 0.5), 4: 0.225, 5: 0.9}),
    ("sd15", "strong style and composition", {t: 0.9 if t in (4, 5) else 0.5 for t in range(16)}),
]


@pytest.mark.parametrize(("name", "weight_type", "expected"), SETS)
def test_style_and_composition_have_their_layers(name, weight_type, expected):
    assert numbered(name, weight_type, weight=0.5, composition_weight=0.9) == plain(expected)


def test_precise_types_push_away_in_the_other_layers():
    def swapped(weight):
        return (pytest.approx(weight), True)

    found = numbered("sdxl", "precise style", weight=0.5, boost=2.0)
    assert found == {3: swapped(2.0), 6: (0.5, False)}
    found = numbered("sdxl", "precise composition", weight=0.5, boost=2.0)
    assert found == {t: (0.5, False) if t == 3 else swapped(2.0 if t == 6 else 0.2) for t in range(11)}
    found = numbered("sd15", "precise style", weight=0.5, boost=2.0)
    assert found == {**dict.fromkeys(STYLE15, (0.5, False)), 4: swapped(0.5), 5: swapped(2.0)}
    found = numbered("sd15", "precise composition", weight=0.5, boost=2.0)
    rest = {t: swapped(2.0 if t in STYLE15 else 0.2) for t in range(16) if t not in (4, 5)}
    assert found == {**rest, 4: (0.125, False), 5: (0.5, False)}


def test_a_model_without_a_middle_has_the_same_blocks():
    """SSD-1B and Vega lost their middle: numbers move, style and composition stay where they were."""
    cut = layout((4, 5, 7, 8), range(6), middle=False)
    found = Strength(weight_type="style and composition").by_place(cut)
    assert set(found) == {TransformerPlace("output", 1), TransformerPlace("input", 8)}


@pytest.mark.parametrize("weight_type", [name for name in WEIGHT_TYPES if "style" in name or "composition" in name])
def test_style_on_an_unknown_layout_is_refused(weight_type):
    with pytest.raises(ValueError, match=r"knows the layers of SD1\.5 and SDXL.*0 input 1, 1 middle 0, 2 output 9"):
        Strength(weight_type=weight_type).by_place(
            [TransformerPlace("input", 1), TransformerPlace("middle", 0), TransformerPlace("output", 9)][:3]
        )


def test_every_weight_type_is_told_apart():
    found = {}
    for weight_type in WEIGHT_TYPES:
        layers = numbered("sd15", weight_type, layer_weights="1:1", composition_weight=0.5, boost=0.3)
        found.setdefault(str(sorted(layers.items())), []).append(weight_type)
    assert all(len(names) == 1 for names in found.values()), found
    assert set(PEER_NAMES.values()) <= set(WEIGHT_TYPES)


def test_layer_weights_are_read_and_multiply_the_weight():
    places = LAYOUTS["sdxl"]
    assert parse_layer_weights("3:0.5, 6:1.0,\n 10: -2", places) == {3: 0.5, 6: 1.0, 10: -2.0}
    assert numbered("sdxl", "custom", weight=2.0, layer_weights="3:0.5,4:0") == plain({3: 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs layer_weights"), ("3", "'3' is not a layer and its weight"), ("a:1", "'a:1' is not"),
        ("3:x", "Write pairs such as 3:0.5, 6:1.0"), ("11:1", "layer 11, but this model has layers 0 to 10"),
        ("-1:1", "layer -1"), ("3:nan", "'3:nan' is not"), ("3:inf", "'3:inf' is not"),
    ],
)  # fmt: skip
def test_wrong_layer_weights_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        Strength(weight_type="custom", layer_weights=text).by_place(LAYOUTS["sdxl"])


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v


def test_scalings_are_those_of_their_formulas():
    q, k, v = torch.randn(3, 2, 5, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
    w, penalty = 0.7, 0.7 * 64 / 1280
    mean = v.mean(1, keepdim=True)
    expected = {
        "V only": w * attend(q, k, v),
        "K+V": attend(q, w * k, w * v),
        "K+V with C penalty": attend(q, penalty * k, penalty * v),
        "K+mean(V) with C penalty": attend(q, penalty * k, v - mean + penalty * mean),
    }
    for scaling, value in expected.items():
        torch.testing.assert_close(attend(q, *weight_keys_and_values(k, v, w, scaling)), value)


EMBEDS = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 8)])
def test_combinations_are_those_of_their_names(shape):
    e, w = torch.randn(shape, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2.0, 0.5])
    spread = w.view(-1, *[1] * (e.ndim - 1))
    expected = {
        "add": (spread * e).sum(0),
        "subtract": (spread * e)[0] - (spread * e)[1:].mean(0),
        "average": (spread * e).sum(0) / w.sum(),
        "norm average": (spread * e / e.norm(dim=-1, keepdim=True)).sum(0)
        / w.sum()
        * ((spread * e.norm(dim=-1, keepdim=True)).sum(0) / w.sum()),
    }
    for how, value in expected.items():
        torch.testing.assert_close(combine(e, w, how)[0], value)


def test_slerp_turns_at_an_even_pace_and_keeps_lengths():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        found = slerp(a, b, t)[0]
        assert math.atan2(found[1], found[0]) == pytest.approx(t * math.pi / 2, abs=1e-6)
        assert found.norm() == pytest.approx(1 + t)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)  # parallel
    assert slerp(a, -a, 0.5).isfinite().all()


def test_slerp_of_several_shares_out_by_weight():
    e = EMBEDS
    torch.testing.assert_close(combine(e[:2], torch.tensor([1.0, 3.0]), "slerp"), slerp(e[:1], e[1:2], 0.75))
    torch.testing.assert_close(combine(e, torch.tensor([0.0, 0.0, 1.0]), "slerp"), e[2:])
    torch.testing.assert_close(combine(e, torch.tensor([1.0, 0.0, 0.0]), "slerp"), e[:1])


def test_image_weights_are_read_with_one_for_the_rest():
    assert parse_weights("1, 0.5", 3).tolist() == [1.0, 0.5, 1.0]
    assert parse_weights("", 2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("text", "message"), [("a", "is not a list of numbers"), ("1,2,3", "3 numbers for 2 images"),
                                               ("nan", "is not a list")])  # fmt: skip
def test_wrong_image_weights_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(text, 2)


@pytest.mark.parametrize("how", ["average", "norm average", "slerp"])
@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0]])
def test_a_share_of_nothing_is_refused(how, weights):
    with pytest.raises(ValueError, match="weights must be 0 or more and not all 0"):
        combine(EMBEDS[:2], torch.tensor(weights), how)


def test_an_image_of_weight_two_counts_as_two_copies():
    q, k, v = (torch.randn(1, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 7))
    k, v = k[:, :6], v[:, :6]  # two images of three tokens
    bias = copy_logits(torch.tensor([2.0, 1.0])).repeat_interleave(3)
    logits = q @ k.transpose(1, 2) / 8**0.5 + bias
    copies = [0, 1, 2, 0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(torch.softmax(logits, -1) @ v, attend(q, k[:, copies], v[:, copies]))
    assert copy_logits(torch.tensor([3.0, 3.0])) is None
