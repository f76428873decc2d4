"""Relatives of the tiny transformers: Wan with control by video (VACE), Wan from a picture, and HiDream-E1."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.attention_by_hand import calls_of, overridden, shape_of
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import (
    FAMILIES,
    MODELS,
    VIDEO,
    Family,
    latent,
    make,
    noise_like,
    sample,
    text,
)
from reins.tests.helpers.transformer_terms import TERMS
from reins.tests.helpers.transformers_by_hand import Where, guided, predict, skipping, themselves

WAN = FAMILIES["wan"].network
RELATIVES = {
    "vace": Family(
        "WAN21_Vace", "WAN21_Vace", "wan2.1", {**WAN, "model_type": "vace", "vace_layers": 3, "vace_in_dim": 96}
    ),
    "i2v": Family("WAN21_I2V", "WAN21", "wan2.1", {**WAN, "model_type": "i2v", "in_dim": 36}),
}


@pytest.fixture(autouse=True)
def relatives(monkeypatch):
    for name, family in RELATIVES.items():
        monkeypatch.setitem(tiny_transformers.FAMILIES, name, family)
        monkeypatch.setitem(VIDEO, name, 3)


class Seen:
    """What the host's encoder of pictures gives."""

    penultimate_hidden_states = torch.randn((1, 257, 1280), generator=torch.Generator().manual_seed(1))


def from_a_picture(seed):
    first = noise_like(latent("i2v"), 5)
    return text(seed, clip_vision_output=Seen(), concat_latent_image=first, concat_mask=torch.zeros((1, 1, 3, 8, 12)))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("layers", ["b0", "b1", "all"])
def test_control_by_video_stays_right(name, layers):
    """The host adds the control to the tokens behind each block in place."""
    model = make("vace")
    found = sample("vace", TERMS[name](model, layers=layers))
    assert nearly(sample("vace", TERMS[name](pass_through(model), layers=layers)), found, 1e-4)
    assert nearly(sample("vace", TERMS[name](model, layers=layers, share=False)), found, 1e-4)
    assert not nearly(sample("vace", model), found, 1e-3)


@pytest.mark.parametrize("blocks", [(0,), (1,), (0, 1, 2)])
def test_control_by_video_passes_skipped_blocks(blocks):
    model, x = make("vace"), noise_like(latent("vace"))
    layers = ",".join(f"b{i}" for i in blocks)
    positive, negative = text(1), text(2)
    found = predict("vace", TERMS["slg"](model, layers=layers), x, positive, 4.0, negative=negative)
    a, b = (predict("vace", model, x, of) for of in (positive, negative))
    with skipping("vace", model, [f"blocks.{i}" for i in blocks]):
        c = predict("vace", model, x, positive)
    assert nearly(found, guided(a, b, c, 4.0, 2.8), 2e-5)


def test_wan_from_a_picture_attends_to_it_before_the_text():
    """Each block attends to the video, to the picture's tokens and to the text."""
    model = make("i2v")
    calls = calls_of(model, lambda model: predict("i2v", model, noise_like(latent("i2v")), from_a_picture(1)))
    assert [shape_of(call) for call in calls] == [
        (f"blocks.{i}", 72, keys) for i in range(3) for keys in (72, 257, 5)
    ]  # fmt: skip


def test_pag_on_wan_from_a_picture_perturbs_the_first_attention_alone():
    model, x = make("i2v"), noise_like(latent("i2v"))
    positive, negative = from_a_picture(1), from_a_picture(2)

    def change(number, seen, attend):
        is_first = seen.block == "blocks.1" and seen.k.shape[2] == 72
        return themselves(seen, Where(0, (3, 4, 6))) if is_first else attend()

    found = predict("i2v", TERMS["pag"](model, layers="b1"), x, positive, 4.0, negative=negative)
    a, b = (predict("i2v", model, x, of) for of in (positive, negative))
    c = predict("i2v", overridden(model, change), x, positive)
    assert nearly(found, guided(a, b, c, 4.0, 3.0), 2e-5)
    assert not nearly(c, a, 1e-3)


@pytest.mark.parametrize("name", TERMS)
def test_calls_of_their_own_give_the_same_on_wan_from_a_picture(name):
    model, conds = make("i2v"), {"positive": from_a_picture(1), "negative": from_a_picture(2)}
    found = sample("i2v", TERMS[name](model, layers="b1"), **conds)
    assert nearly(sample("i2v", TERMS[name](pass_through(model), layers="b1"), **conds), found, 1e-4)
    assert not nearly(sample("i2v", model, **conds), found, 1e-3)


@pytest.mark.parametrize("name", ["pag", "seg", "slg", "tpg"])
def test_a_second_picture_in_each_row_is_refused(name):
    """HiDream-E1 has the picture to be edited beside the one that is made."""
    edited = text(1, family="hidream", concat_latent_image=noise_like(latent("hidream")))
    with pytest.raises(RuntimeError, match=r"should have the picture in one piece.*\(HiDream-E1\)"):
        sample("hidream", TERMS[name](MODELS["hidream"](), layers="s0"), positive=edited)
