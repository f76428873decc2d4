"""Reads a picture of the small world back in closed form: its words, its mask, and its distance from a clean scene.

There is no network, and nothing is fitted to data. The ground comes from the border, the colour from the pixels that
differ most from the ground. Shape, centre and radius come from a search over drawn shapes, and the texture from second
differences.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .world.scenes import (
    BACKGROUND_JITTER,
    CENTRES,
    COLOUR_JITTER,
    LEVELS,
    PALETTE,
    PATTERNS,
    RADIUS,
    SIZE,
    SLOPE,
    TEXTURE_AMPLITUDE,
    TEXTURE_PERIOD,
    Scenes,
    coverage,
    render,
)

AREA = torch.tensor([3.1416, 3.1400, 2.6937, 2.9184])  # of each shape at radius 1
SEARCH = (
    (1.0, (0.85, 0.92, 1.0, 1.08, 1.16)),
    (0.5, (0.96, 1.0, 1.04)),
    (0.25, (0.98, 1.0, 1.02)),
)  # step of the centre in pixels, factors of the radius
COLOUR_PIXELS = 24  # that tell the shape's colour: about half of the smallest shape


class Verdict(NamedTuple):
    """What b pictures show."""

    words: Tensor  # (b, slots), index of the nearest word of each slot
    mask: Tensor  # (b, SIZE, SIZE), 0 or 1
    quality: Tensor  # (b,), PSNR in dB against the nearest clean scene
    template_error: Tensor  # (b,), root mean square distance of the soft mask from the best drawn shape
    radius: Tensor  # (b,), of that shape, in pixels
    clean: Tensor  # (b, 3, SIZE, SIZE), the nearest clean scene

    def right(self, words: Tensor) -> Tensor:
        """Whether each slot is as asked by words (b, slots): booleans (b, slots). A slot of -1 asks for nothing."""
        return (self.words == words) | (words < 0)


class Fit(NamedTuple):
    """A drawn shape that is compared with a soft mask: error and radius (b,), centre (b, 2)."""

    error: Tensor
    centre: Tensor
    radius: Tensor

    def better(self, other: Fit) -> Fit:
        """The fit with the smaller error, for each picture."""
        wins = other.error < self.error
        centre = torch.where(wins[:, None], other.centre, self.centre)
        return Fit(torch.where(wins, other.error, self.error), centre, torch.where(wins, other.radius, self.radius))


def judge(image: Tensor) -> Verdict:
    """What the pictures (b, 3, SIZE, SIZE) in 0..1 show.

    Raises ValueError if they have another shape.
    """
    if image.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"expected pictures of shape (b, 3, {SIZE}, {SIZE}), found {tuple(image.shape)}")
    image = image.float()
    texture = read_texture(image)
    flat = image - TEXTURE_AMPLITUDE * PATTERNS[texture][:, None]
    level, slope = fit_ground(flat)
    ramp = torch.linspace(-1, 1, SIZE)[:, None]
    ground = level[..., None, None] + slope[..., None, None] * ramp
    colour = shape_colour(flat, ground)
    alpha = soft_mask(flat, ground, colour)
    kind, fit = fit_shape(alpha)
    words = torch.stack(
        [
            kind,
            torch.cdist(colour, PALETTE).argmin(1),
            torch.cdist(fit.centre, CENTRES).argmin(1),
            (fit.radius[:, None] - RADIUS).abs().argmin(1),
            (level.mean(1)[:, None] - LEVELS).abs().argmin(1),
            texture,
        ],
        1,
    )
    clean = render(nearest_scene(words, fit, colour, level.mean(1), slope.mean(1))).image
    error = (clean - image).pow(2).mean((1, 2, 3)).sqrt()
    return Verdict(
        words, (alpha > 0.5).float(), -20 * error.clamp(min=1e-4).log10(), fit.error.sqrt(), fit.radius, clean
    )


def read_texture(image: Tensor) -> Tensor:
    """The index (b,) of the texture of pictures (b, 3, SIZE, SIZE).

    A texture changes its sign over half a period. So the difference between a pixel and the mean of its neighbours at
    that distance is twice the texture. The median ignores the few pixels at the shape's border.
    """
    grey = image.mean(1)
    half = TEXTURE_PERIOD // 2
    difference = grey[:, half:-half] - (grey[:, 2 * half :] + grey[:, : -2 * half]) / 2
    strength = (difference[:, None] * PATTERNS[1:, half:-half]).flatten(2).median(2).values / 2
    strongest = strength.max(1)
    return torch.where(strongest.values > TEXTURE_AMPLITUDE / 2, strongest.indices + 1, 0)


def fit_ground(image: Tensor) -> tuple[Tensor, Tensor]:
    """Level and slope (b, 3) of the ground in pictures (b, 3, SIZE, SIZE).

    They are the least squares over the border, without the pixels that a shape covers.
    """
    ring = torch.ones(SIZE, SIZE, dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    y = torch.linspace(-1, 1, SIZE)[:, None].expand(SIZE, SIZE)[ring]
    values = image[:, :, ring]
    level, slope = values.median(2).values, torch.zeros(len(image), 3)
    for _ in range(4):
        rest = (values - level[..., None] - slope[..., None] * y).abs().amax(1, keepdim=True)
        weight = (rest < 0.15).float()
        total = weight.sum(2).clamp(min=1)
        y_mean, mean = (weight * y).sum(2) / total, (weight * values).sum(2) / total
        centred = weight * (y - y_mean[..., None])
        spread = (centred * (y - y_mean[..., None])).sum(2).clamp(min=1e-3)
        slope = ((centred * (values - mean[..., None])).sum(2) / spread).clamp(-0.15, 0.15)
        level = mean - slope * y_mean
    return level, slope


def shape_colour(image: Tensor, ground: Tensor) -> Tensor:
    """The median colour (b, 3) of the pixels that differ most from the ground, both (b, 3, SIZE, SIZE)."""
    far = (image - ground).pow(2).sum(1).flatten(1).topk(COLOUR_PIXELS).indices
    return image.flatten(2).gather(2, far[:, None].expand(-1, 3, -1)).median(2).values


def soft_mask(image: Tensor, ground: Tensor, colour: Tensor) -> Tensor:
    """The soft mask (b, SIZE, SIZE) in 0..1: how far each pixel lies from the ground towards the shape's colour.

    `image` and `ground` are (b, 3, SIZE, SIZE), `colour` is (b, 3).
    """
    way = colour[:, :, None, None] - ground
    return (((image - ground) * way).sum(1) / way.pow(2).sum(1).clamp(min=1e-3)).clamp(0, 1)


def fit_shape(alpha: Tensor) -> tuple[Tensor, Fit]:
    """The kind (b,) and the fit of the drawn shape nearest to a soft mask (b, SIZE, SIZE)."""
    solid = torch.where(alpha > 0.3, alpha, 0.0)
    area = solid.flatten(1).sum(1).clamp(min=4)
    grid = torch.arange(SIZE) + 0.5
    centre = torch.stack([(solid.sum(1) * grid).sum(1), (solid.sum(2) * grid).sum(1)], 1) / area[:, None]
    fits = [search(alpha, kind, centre, (area / AREA[kind]).sqrt()) for kind in range(len(AREA))]
    kind = torch.stack([fit.error for fit in fits], 1).argmin(1)
    rows = torch.arange(len(alpha))
    return kind, Fit(*(torch.stack(values, 1)[rows, kind] for values in zip(*fits, strict=True)))


def search(alpha: Tensor, kind: int, centre: Tensor, radius: Tensor) -> Fit:
    """The best fit of one kind of shape to a soft mask (b, SIZE, SIZE), by a search from coarse to fine.

    The search begins at `centre` (b, 2) and `radius` (b,).
    """
    kinds = torch.full((len(alpha),), kind)
    best = Fit(torch.full((len(alpha),), torch.inf), centre, radius)
    for step, factors in SEARCH:
        start = best
        for dx, dy, factor in product((-step, 0.0, step), (-step, 0.0, step), factors):
            there, size = start.centre + torch.tensor([dx, dy]), start.radius * factor
            error = (coverage(kinds, there, size) - alpha).pow(2).mean((1, 2))
            best = best.better(Fit(error, there, size))
    return best


def nearest_scene(words: Tensor, fit: Fit, colour: Tensor, level: Tensor, slope: Tensor) -> Scenes:
    """The scenes with the measured numbers, clamped to the bounds of drawn scenes.

    `words` are (b, slots), `colour` is (b, 3), `level` and `slope` of the ground are (b,).
    """
    palette, levels = PALETTE[words[:, 1]], LEVELS[words[:, 4]]
    return Scenes(
        words=words,
        centre=fit.centre,
        radius=fit.radius.clamp(RADIUS.min() - 0.5, RADIUS.max() + 0.5),
        colour=colour.clamp(palette - COLOUR_JITTER, palette + COLOUR_JITTER).clamp(0, 1),
        level=level.clamp(levels - BACKGROUND_JITTER, levels + BACKGROUND_JITTER),
        slope=slope.clamp(-SLOPE, SLOPE),
        depth=0.5 + 0.05 * fit.radius,
    )


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """The intersection over union (b,) of two masks (b, SIZE, SIZE)."""
    a, b = a > 0.5, b > 0.5
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(min=1)
