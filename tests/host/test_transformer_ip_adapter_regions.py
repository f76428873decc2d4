"""Masks, areas and names of prompts, with an IP-Adapter on a transformer."""

from __future__ import annotations

import pytest
import torch
from reins.nodes.ip_adapter.conditioning_node import IPAdapterConditioning
from reins.tests.helpers.hooked_ip_adapters import instantx_flux_added
from reins.tests.helpers.other_packs import hook_with, regrouped, tiled
from reins.tests.helpers.steered_transformers import FORMS, MAIN, added, apply, begun, by_formula, file_of, read
from reins.tests.helpers.tiny_models import little_memory, nearly
from reins.tests.helpers.tiny_transformers import sample, text
from reins.tests.helpers.transformers_by_hand import predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)
TEXT = 5  # tokens


def tokens_of(mask, h, w):
    """A mask (1, h, w) of cells on the tokens of 2 x 2 cells (n, 1)."""
    padded = torch.nn.functional.pad(mask[None], (0, w % 2, 0, h % 2), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 2).flatten()[:, None]


def masked(form, model, x, prompt, weights):
    """The prediction with a weight for each token of the picture, by hooks. Text has no place, and gets nothing."""
    if form not in ("instantx", "chroma"):
        return by_formula(form, model, x, prompt, weight=weights)
    in_singles = torch.cat([torch.zeros(TEXT, 1), weights])
    with instantx_flux_added(model, file_of(form), read(form, 4), weights, in_singles):
        return predict(FORMS[form].family, model, x, prompt)


@EACH
@pytest.mark.parametrize("size", [(8, 12), (6, 10), (16, 4)], ids=str)
def test_a_mask_weighs_the_tokens_of_its_place(form, size):
    family, model, x = begun(form, *size, batch=2)
    positive = text(1, family=family)
    mask = torch.rand((1, *size), generator=torch.Generator().manual_seed(2))
    blocks = mask[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)  # alike within each token
    found = predict(family, apply(form, model, mask=blocks), x, positive)
    assert nearly(found, masked(form, model, x, positive, tokens_of(blocks, *size)), 1e-5)
    assert not nearly(found, by_formula(form, model, x, positive), 1e-3)


@EACH
@pytest.mark.parametrize("size", [(9, 7), (7, 12), (5, 3), (13, 8)], ids=str)
def test_a_mask_of_ones_is_no_mask_at_odd_sizes(form, size):
    family, model, x = begun(form, *size)
    positive = text(1, family=family)
    found = predict(family, apply(form, model, mask=torch.ones(1, 5, 6)), x, positive)
    ones = torch.ones(-(-size[0] // 2) * -(-size[1] // 2), 1)
    assert nearly(found, masked(form, model, x, positive, ones), 1e-5)
    if form not in ("instantx", "chroma"):  # which show the text of single blocks nothing with a mask
        assert nearly(found, by_formula(form, model, x, positive), 1e-5)


@EACH
@pytest.mark.parametrize("w", [9, 13, 25])
def test_a_mask_holds_at_its_place_at_odd_sizes(form, w):
    """A mask of pixels whose edge lies between two tokens. The last token covers one cell, and a filled-up one."""
    family, model, x = begun(form, 8, w)
    positive, cells = text(1, family=family), torch.zeros(1, 8, w)
    cells[..., w // 2 // 2 * 2 :] = 1
    pixels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    found = predict(family, apply(form, model, mask=pixels), x, positive)
    assert nearly(found, masked(form, model, x, positive, tokens_of(cells, 8, w)), 1e-5)


@EACH
def test_each_picture_of_a_batch_has_its_mask(form):
    family, model, x = begun(form, batch=2)
    positive = text(1, family=family)
    masks = torch.rand((2, 4, 6), generator=torch.Generator().manual_seed(2))
    found = predict(family, apply(form, model, mask=masks), x, positive)
    for row in range(2):
        one = apply(form, model, mask=masks[row : row + 1])
        assert nearly(found[row : row + 1], predict(family, one, x[row : row + 1], positive), 1e-5)


def areas(family, **settings):
    """Two prompts: one for the left half, one for the right."""
    left = text(1, family=family, area=(8, 8, 0, 0), **settings.get("left", {}))
    return left + text(11, family=family, area=(8, 8, 0, 8), **settings.get("right", {}))


@EACH
def test_two_areas_see_different_parts_of_a_mask(form):
    family, model, x = begun(form, 8, 16)
    mask = torch.zeros(1, 64, 128)
    mask[..., 96:] = 1  # the right half of the right half
    found = predict(family, apply(form, model, mask=mask), x, areas(family))
    plain = predict(family, model, x, areas(family))
    assert torch.equal(found[..., :8], plain[..., :8])
    right = predict(family, apply(form, model, mask=mask[..., 64:]), x[..., 8:], text(11, family=family))
    assert nearly(found[..., 8:], right, 1e-5)
    assert not nearly(found, plain, 1e-3)


@EACH
def test_areas_give_the_same_however_rows_are_grouped(form, monkeypatch):
    family, model, x = begun(form, 8, 16, batch=2)
    mask = torch.rand((1, 8, 16), generator=torch.Generator().manual_seed(2))
    steered, settings = apply(form, model, mask=mask), {"positive": areas(family), "negative": areas(family)[::-1]}
    whole = sample(family, steered, w=16, batch=2, start=x, **settings)
    with little_memory(monkeypatch, model):
        assert nearly(sample(family, steered, w=16, batch=2, start=x, **settings), whole, 1e-5)


@EACH
def test_an_adapter_for_a_name_acts_on_the_prompts_of_that_name(form):
    family, model, x = begun(form)
    (named,) = IPAdapterConditioning.execute(text(1, family=family), "left").result
    other = text(11, family=family)
    steered = apply(form, model, only_for="left")
    found = predict(family, steered, x, named)
    assert nearly(found, by_formula(form, model, x, text(1, family=family)), 1e-5)
    assert torch.equal(predict(family, steered, x, other), predict(family, model, x, other))
    both = predict(family, steered, x, named + other)
    mean = (by_formula(form, model, x, text(1, family=family)) + predict(family, model, x, other)) / 2
    assert nearly(both, mean, 1e-5)


@EACH
def test_an_adapter_for_a_name_and_a_mask_act_together(form):
    family, model, x = begun(form)
    (named,) = IPAdapterConditioning.execute(text(1, family=family), "left").result
    mask = torch.zeros(1, 8, 12)
    mask[..., 6:] = 1
    steered = apply(form, model, mask=mask, only_for="left")
    other = text(11, family=family)
    found = predict(family, steered, x, named + other)
    one = masked(form, model, x, text(1, family=family), tokens_of(mask, 8, 12))
    assert nearly(found, (one + predict(family, model, x, other)) / 2, 1e-5)


@OF_MAIN
def test_masks_of_prompts_weigh_predictions(form):
    family, model, x = begun(form)
    mask = torch.zeros(1, 8, 12)
    mask[..., :4] = 1
    positive = text(1, family=family, mask=mask, set_area_to_bounds=False) + text(
        11, family=family, mask=1 - mask, set_area_to_bounds=False
    )
    found = predict(family, apply(form, model), x, positive)
    one, other = (by_formula(form, model, x, text(seed, family=family)) for seed in (1, 11))
    assert nearly(found, one * mask + other * (1 - mask), 1e-5)


@OF_MAIN
def test_a_mask_under_a_pack_that_tiles_the_picture_is_refused(form):
    family, model, x = begun(form)
    with pytest.raises(RuntimeError, match=r"another node shows the model a part of 8x6 cells"):
        predict(family, apply(form, regrouped(model, tiled), mask=torch.ones(1, 8, 8)), x, text(1, family=family))


@OF_MAIN
def test_tiles_read_the_picture(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    found = predict(family, apply(form, regrouped(model, tiled)), x, positive)
    tiles = [by_formula(form, model, tile, positive) for tile in x.chunk(2, -1)]
    assert nearly(found, torch.cat(tiles, -1), 1e-5)


@OF_MAIN
@pytest.mark.parametrize("settings", [{"mask": torch.ones(1, 4, 4)}, {"only_for": "left"}], ids=["mask", "only_for"])
def test_what_a_hook_cannot_know_is_refused(form, settings):
    family, model, x = begun(form)
    group = hook_with(apply(form, model, **settings))
    with pytest.raises(RuntimeError, match="that a hook brings cannot know the areas and names"):
        predict(family, model, x, text(1, family=family, hooks=group))


@EACH
def test_an_adapter_that_a_hook_brings_acts_on_its_prompt_alone(form):
    family, model, x = begun(form)
    group = hook_with(apply(form, model))
    positive, negative = text(1, family=family, hooks=group), text(2, family=family)
    found = predict(family, model, x, positive, 4.0, negative=negative)
    with added(form, model):
        a = predict(family, model, x, text(1, family=family))
    b = predict(family, model, x, negative)
    assert nearly(found, b + 4.0 * (a - b), 2e-5)
