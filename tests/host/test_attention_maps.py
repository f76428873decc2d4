"""The map of a pass from the maps of its chunks, against a direct sum per cell."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from reins.engine.rows.images import images_of_window
from reins.nodes.guidance.self_attention import AttentionMap, combine_maps

X, SIGMA = torch.zeros(2, 4, 16, 16), torch.tensor([3.0, 3.0])


def entry(**extra):
    return {"model_conds": {}, "uuid": uuid4(), **extra}


def found(cond, rows=2, cells=4, size=(16, 16), images=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AttentionMap(
        cond["uuid"],
        1,
        torch.rand(rows, cells, cells, generator=generator),
        size,
        tuple(range(rows)) if images is None else images,
    )


def big(attention_map):
    h, w = attention_map.size
    cells = attention_map.received.shape[-1]
    return attention_map.received.repeat_interleave(h // cells, 1).repeat_interleave(w // cells, 2)


def test_masks_and_strengths_weigh_the_maps():
    mask = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(9))
    a, b = entry(strength=0.6), entry(mask=mask, mask_strength=0.8)
    maps = [found(a, seed=1), found(b, seed=2)]
    expected = (0.6 * big(maps[0]) + 0.8 * mask * big(maps[1])) / (0.6 + 0.8 * mask)
    torch.testing.assert_close(combine_maps(maps, [a, b], X, SIGMA), expected)
    torch.testing.assert_close(combine_maps(maps, [b, a], X, SIGMA), expected)


def test_areas_weigh_the_maps_where_they_lie():
    whole, part = entry(), entry(area=(8, 12, 4, 2), strength=3.0)
    maps = [found(whole, seed=1), found(part, size=(8, 12), seed=2)]
    out = combine_maps(maps, [whole, part], X, SIGMA)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:12, 2:14] = False
    assert torch.equal(out[:, outside], big(maps[0])[:, outside])
    y, x = 8, 8  # deep inside the area, where the host's soft edge has ended
    expected = (big(maps[0])[:, y, x] + 3 * big(maps[1])[:, y - 4, x - 2]) / 4
    torch.testing.assert_close(out[:, y, x], expected)


def test_defaults_share_what_the_others_leave_in_any_order():
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :6] = 0.75
    main, a, b = entry(mask=mask), entry(default=True), entry(default=True)
    maps = [found(main, seed=1), found(a, seed=2), found(b, seed=3)]
    rest = 1 - mask
    expected = (mask * big(maps[0]) + rest * (big(maps[1]) + big(maps[2]))) / (mask + 2 * rest)
    torch.testing.assert_close(combine_maps(maps, [main, a, b], X, SIGMA), expected)
    torch.testing.assert_close(combine_maps(maps, [b, a, main], X, SIGMA), expected)


def test_overlapping_windows_are_averaged_and_missing_ones_have_no_weight():
    """The first cond is seen in the windows [0, 1] and [1, 2] of three pictures, the second one in the last alone."""
    x, sigma = torch.zeros(3, 4, 16, 16), torch.full((3,), 3.0)
    first, second = entry(), entry()
    maps = [
        found(first, images=(0, 1), seed=1),
        found(first, images=(1, 2), seed=2),
        found(second, images=(1, 2), seed=3),
    ]
    one, two, three = (big(m) for m in maps)
    middle = (one[1] + two[0]) / 2
    expected = torch.stack([one[0], (middle + three[0]) / 2, (two[1] + three[1]) / 2])
    torch.testing.assert_close(combine_maps(maps, [first, second], x, sigma), expected)


def test_a_window_with_an_anchor_counts_it_where_it_belongs():
    x, sigma = torch.zeros(3, 4, 16, 16), torch.full((3,), 3.0)
    cond, window = entry(), SimpleNamespace(index_list=[1, 2], causal_anchor_index=0)
    maps = [found(cond, rows=3, images=images_of_window(window, 3))]
    torch.testing.assert_close(combine_maps(maps, [cond], x, sigma), big(maps[0]))


def test_conds_outside_their_time_do_not_count():
    over, active = entry(timestep_start=0.5, timestep_end=0.1), entry()
    maps = [found(active)]
    torch.testing.assert_close(combine_maps(maps, [over, active], X, SIGMA), big(maps[0]))
    assert combine_maps([], [over], X, SIGMA) is None


def test_a_picture_in_tiles_is_refused():
    cond = entry()
    with pytest.raises(RuntimeError, match="into tiles"):
        combine_maps([found(cond, size=(16, 8))], [cond], X, SIGMA)
    with pytest.raises(RuntimeError, match="into tiles"):
        combine_maps([], [cond], X, SIGMA)
