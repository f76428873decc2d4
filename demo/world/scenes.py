"""A small world of drawn pictures: one coloured shape on a plain ground, described by one word per slot.

A scene is a handful of numbers, so its picture, mask, depth and edges are exact, and what a model draws can be read
back in closed form (judge.py). Coordinates are pixels, x to the right and y down. Colours lie in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 32

# sRGB values that stay apart from each other, from every ground, and inside 0..1 with jitter and texture on top
COLOURS = {
    "red": (0.88, 0.15, 0.15),
    "green": (0.15, 0.68, 0.22),
    "blue": (0.16, 0.30, 0.90),
    "yellow": (0.90, 0.82, 0.15),
    "purple": (0.66, 0.20, 0.80),
    "cyan": (0.15, 0.80, 0.88),
}
BACKGROUNDS = {"black": 0.12, "grey": 0.50, "white": 0.88}
RADII = {"small": 4.3, "large": 6.9}
COLUMNS, ROWS = (10.0, 16.0, 22.0), (10.0, 16.0, 22.0)
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
TEXTURES = ("plain", "striped", "checked")

SLOTS: Mapping[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "cross"),
    "colour": tuple(COLOURS),
    "place": PLACES,
    "size": tuple(RADII),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}

PLACE_JITTER, RADIUS_JITTER, COLOUR_JITTER, BACKGROUND_JITTER, SLOPE = 1.0, 0.4, 0.04, 0.03, 0.03
TEXTURE_AMPLITUDE = 0.07
TEXTURE_PERIOD = 4
STRIPED_SHARE = 0.25
FLOOR_FAR, FLOOR_NEAR = 0.15, 0.35  # depth of the ground at the top and at the bottom, 1 is nearest
PAIR_DEPTHS = (0.6, 0.85)

PALETTE = torch.tensor(list(COLOURS.values()))
LEVELS = torch.tensor(list(BACKGROUNDS.values()))
RADIUS = torch.tensor(list(RADII.values()))
CENTRES = torch.tensor([(x, y) for y in ROWS for x in COLUMNS])


class Scenes(NamedTuple):
    """b scenes. `words` holds the index of each word within its slot."""

    words: Tensor  # (b, slots)
    centre: Tensor  # (b, 2), x and y
    radius: Tensor  # (b,)
    colour: Tensor  # (b, 3)
    level: Tensor  # (b,), brightness of the ground
    slope: Tensor  # (b,), how much brighter the ground is at its bottom than in its middle
    depth: Tensor  # (b,), of the shape: 1 is nearest


class Views(NamedTuple):
    """What there is to see of b scenes, in 0..1: the image (b, 3, SIZE, SIZE), and the others (b, SIZE, SIZE)."""

    image: Tensor
    coverage: Tensor  # antialiased, the mask is where it is above one half
    depth: Tensor
    edge: Tensor

    @property
    def mask(self) -> Tensor:
        """The mask (b, SIZE, SIZE): 1 in pixels that a shape covers by more than half, else 0."""
        return (self.coverage > 0.5).float()


def draw_words(count: int, generator: torch.Generator) -> Tensor:
    """Random word indices (count, slots) as the base model knows them: a quarter striped, the rest plain."""
    columns = [torch.randint(len(words), (count,), generator=generator) for words in SLOTS.values()]
    columns[-1] = (torch.rand(count, generator=generator) < STRIPED_SHARE).long()
    return torch.stack(columns, 1)


def draw(count: int, generator: torch.Generator, words: Tensor | None = None) -> Scenes:
    """Random scenes of the given words (count, slots), or of random words."""
    words = draw_words(count, generator) if words is None else words
    _, colour, place, size, background, _ = words.unbind(1)

    def jitter(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    radius = RADIUS[size] + RADIUS_JITTER * jitter(count)
    return Scenes(
        words=words,
        centre=CENTRES[place] + PLACE_JITTER * jitter(count, 2),
        radius=radius,
        colour=(PALETTE[colour] + COLOUR_JITTER * jitter(count, 3)).clamp(0, 1),
        level=LEVELS[background] + BACKGROUND_JITTER * jitter(count),
        slope=SLOPE * jitter(count),
        depth=0.5 + 0.05 * radius,  # a larger shape is a nearer one, so that a picture tells its depth
    )


def draw_pairs(count: int, generator: torch.Generator) -> tuple[Scenes, Scenes]:
    """`count` pairs of scenes with one ground and texture: a shape, and one in front that covers it in part."""
    back, front = draw(count, generator), draw(count, generator)
    angle = torch.rand(count, generator=generator) * 2 * torch.pi
    aside = 0.9 * back.radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    words = front.words.clone()
    words[:, 4:] = back.words[:, 4:]
    far, near = (torch.full((count,), depth) for depth in PAIR_DEPTHS)
    front = front._replace(
        words=words, centre=back.centre + aside, level=back.level, slope=back.slope, depth=near
    )  # fmt: skip
    return back._replace(depth=far), front


def coverage(kind: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel the shapes cover, (b, SIZE, SIZE), from their signed distances.

    `kind` (b,) is the index of each shape, `centre` (b, 2) its x and y, `radius` is (b,).
    """
    grid = torch.arange(SIZE, device=centre.device) + 0.5
    x = (grid - centre[:, :1])[:, None, :]
    y = (grid - centre[:, 1:])[:, :, None]
    r = radius[:, None, None]
    circle = (x * x + y * y).sqrt() - r
    square = torch.maximum(x.abs(), y.abs()) - 0.886 * r
    # equilateral, with its apex up and its centroid at the centre. All four shapes have about the same area.
    triangle = torch.maximum(y - 0.72 * r, x.abs() * 0.8660254 - y * 0.5 - 0.72 * r)
    arm, length = 0.38 * r, 1.15 * r
    lying = torch.maximum(x.abs() - length, y.abs() - arm)
    standing = torch.maximum(x.abs() - arm, y.abs() - length)
    distance = torch.stack(torch.broadcast_tensors(circle, square, triangle, torch.minimum(lying, standing)), 1)
    return (0.5 - distance[torch.arange(len(kind), device=centre.device), kind]).clamp(0, 1)


def patterns() -> Tensor:
    """The textures (textures, SIZE, SIZE) of -1, 0 and 1: nothing, bands two pixels high, and squares of two pixels."""
    band = 1.0 - 2.0 * ((torch.arange(SIZE) % TEXTURE_PERIOD) >= TEXTURE_PERIOD // 2).float()
    striped = band[:, None].expand(SIZE, SIZE)
    return torch.stack([torch.zeros(SIZE, SIZE), striped, striped * striped.T])


PATTERNS = patterns()


def render(*layers: Scenes) -> Views:
    """What there is to see of the layers, drawn one upon the other, the farthest first.

    Ground and texture are those of the first layer.
    """
    first = layers[0]
    ramp = torch.linspace(-1, 1, SIZE)[:, None]
    ground = (first.level[:, None, None] + first.slope[:, None, None] * ramp).expand(-1, SIZE, SIZE)
    image = ground[:, None].expand(-1, 3, -1, -1)
    depth = torch.linspace(FLOOR_FAR, FLOOR_NEAR, SIZE)[:, None].expand(len(first.words), SIZE, SIZE)
    total = edge = torch.zeros(len(first.words), SIZE, SIZE)
    for layer in layers:
        cover = coverage(layer.words[:, 0], layer.centre, layer.radius)
        image = torch.lerp(image, layer.colour[:, :, None, None].expand_as(image), cover[:, None])
        depth = torch.lerp(depth, layer.depth[:, None, None].expand_as(depth), cover)
        edge = torch.maximum(edge * (1 - cover), outline(cover))
        total = torch.maximum(total, cover)
    image = image + TEXTURE_AMPLITUDE * PATTERNS[first.words[:, -1]][:, None]
    return Views(image.clamp(0, 1), total, depth, edge)


def outline(cover: Tensor) -> Tensor:
    """The outline (b, SIZE, SIZE), 1 in pixels on the border of a shape, from the coverage (b, SIZE, SIZE)."""
    edge = torch.zeros_like(cover)
    edge[:, :, 1:] += (cover[:, :, 1:] - cover[:, :, :-1]).abs()
    edge[:, 1:] += (cover[:, 1:] - cover[:, :-1]).abs()
    return edge.clamp(0, 1)
