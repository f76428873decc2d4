"""The small world is what its words say, and its maps are exact."""

from __future__ import annotations

import pytest
import torch
from reins.demo.world.scenes import (
    CENTRES,
    LEVELS,
    PAIR_DEPTHS,
    PALETTE,
    PATTERNS,
    PLACE_JITTER,
    RADIUS,
    SIZE,
    SLOTS,
    TEXTURE_AMPLITUDE,
    coverage,
    draw,
    draw_pairs,
    draw_words,
    render,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    return draw(400, generator())


@pytest.fixture(scope="module")
def views(scenes):
    return render(scenes)


def test_a_seed_draws_the_same_pictures_again_and_another_seed_others(views):
    assert torch.equal(render(draw(400, generator())).image, views.image)
    assert not torch.equal(render(draw(400, generator(1))).image, views.image)


def test_every_word_of_the_base_world_is_drawn(scenes):
    for slot, words in enumerate(SLOTS.values()):
        drawn = set(scenes.words[:, slot].tolist())
        assert drawn == set(range(len(words))) - ({2} if slot == 5 else set())  # checked is left to adapters


def test_the_maps_lie_in_their_range(views):
    for view in views:
        assert view.dtype == torch.float32
        assert view.min() >= 0 and view.max() <= 1
    assert views.image.shape == (400, 3, SIZE, SIZE)
    assert views.mask.shape == views.depth.shape == views.edge.shape == (400, SIZE, SIZE)


def test_inside_the_shape_stands_its_colour_and_outside_the_ground(scenes, views):
    plain = scenes.words[:, -1] == 0
    image = views.image[plain]
    for b, colour in enumerate(scenes.colour[plain]):
        inside = image[b][:, views.coverage[plain][b] == 1]
        assert torch.allclose(inside, colour[:, None].expand_as(inside), atol=1e-6)
        outside = image[b][:, views.coverage[plain][b] == 0]
        assert (outside - scenes.level[plain][b]).abs().max() <= 0.031  # the slope


@pytest.mark.parametrize("texture", [1, 2])
def test_a_texture_lies_over_the_whole_picture_with_its_amplitude(texture):
    words = draw_words(50, generator())
    words[:, -1] = texture
    textured = render(draw(50, generator(3), words)).image
    words[:, -1] = 0
    plain = render(draw(50, generator(3), words)).image
    # the darkest grounds are cut off at black
    assert torch.allclose(textured - plain, (TEXTURE_AMPLITUDE * PATTERNS[texture]).expand_as(plain), atol=0.0101)
    assert PATTERNS[texture].mean() == 0


def test_coverage_is_the_share_of_a_pixel_that_lies_inside():
    """Against counting 16 x 16 points per pixel."""
    points = (torch.arange(SIZE * 16) + 0.5) / 16
    x, y = points[None, :] - 15.3, points[:, None] - 16.6
    r = 6.5
    bars = ((x.abs() < 1.15 * r) & (y.abs() < 0.38 * r)) | ((x.abs() < 0.38 * r) & (y.abs() < 1.15 * r))
    truth = [
        x * x + y * y < r * r,
        torch.maximum(x.abs(), y.abs()) < 0.886 * r,
        (y < 0.72 * r) & (x.abs() * 3**0.5 / 2 - y / 2 < 0.72 * r),
        bars,
    ]
    drawn = coverage(torch.arange(4), torch.tensor([[15.3, 16.6]] * 4), torch.full((4,), r))
    for cover, inside in zip(drawn, truth, strict=True):
        counted = inside.float().view(SIZE, 16, SIZE, 16).mean((1, 3))
        assert (cover - counted).abs().max() < 0.3  # corners; an antialiased border is a ramp of one pixel
        assert (cover - counted).abs().mean() < 0.004


def test_the_four_shapes_have_about_the_same_area():
    area = coverage(torch.arange(4), torch.full((4, 2), 16.0), torch.full((4,), 6.9)).sum((1, 2))
    assert area.max() / area.min() < 1.25


def test_places_sizes_colours_and_grounds_stay_within_their_jitter(scenes):
    words = scenes.words
    assert (scenes.centre - CENTRES[words[:, 2]]).abs().max() <= PLACE_JITTER
    assert (scenes.radius - RADIUS[words[:, 3]]).abs().max() <= 0.4
    assert (scenes.colour - PALETTE[words[:, 1]]).abs().max() <= 0.04 + 1e-6
    assert (scenes.level - LEVELS[words[:, 4]]).abs().max() <= 0.03 + 1e-6


def test_the_depth_is_nearer_inside_the_shape_and_grows_towards_the_bottom(scenes, views):
    inside, outside = views.coverage == 1, views.coverage == 0
    assert torch.allclose(views.depth[inside], scenes.depth[:, None, None].expand_as(views.depth)[inside])
    assert views.depth[inside].min() > views.depth[outside].max()
    column = views.depth[0, :, 0]
    assert (column.diff() > 0).all()


def test_the_edge_is_where_the_coverage_changes(views):
    far = torch.nn.functional.max_pool2d(views.coverage[:, None], 3, 1, 1)[:, 0]
    near = -torch.nn.functional.max_pool2d(-views.coverage[:, None], 3, 1, 1)[:, 0]
    assert (views.edge[far == near] == 0).all()
    assert (views.edge.flatten(1).sum(1) > 10).all()


def test_of_two_shapes_the_nearer_one_covers_the_other():
    back, front = draw_pairs(64, generator())
    both, alone = render(back, front), render(front)
    covered = alone.coverage == 1
    assert torch.equal(both.image.movedim(1, -1)[covered], alone.image.movedim(1, -1)[covered])
    assert torch.allclose(both.depth[covered], torch.tensor(PAIR_DEPTHS[1]))
    behind = (render(back).coverage == 1) & (alone.coverage == 0)
    assert torch.allclose(both.depth[behind], torch.tensor(PAIR_DEPTHS[0]))
    assert (behind.flatten(1).sum(1) > 0).float().mean() > 0.8  # the one behind can be seen
