"""ControlNeXt (2408.06070): a hint becomes one feature, takes on the statistics of the UNet's own, and is added to it.

    h + gain * strength * CN(control(hint, t), h)

The network runs once per step on each different hint, however many chunks and context windows ask for it; what of it
does not depend on the noise level is kept for the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...engine.layers.features import FeatureCall, FeatureSite
from ...engine.loading import load_with
from ...engine.network import add_feature_layer
from ...engine.rows.conds import CONDS, Area, ChunkInfo, check_whole, info_of, install_chunk_infos, is_negative
from ...engine.rows.images import clamped, images_in_window, images_of
from ...engine.rows.masks import on_grid
from ...engine.run import Run, run_in
from ...engine.span import Span
from ...engine.unet_weights import UNetWeights
from ...models.controlnext.cross_normalization import match_statistics, standardise
from ...models.controlnext.files import Variant
from ...models.controlnext.network import Layout, Prepared

logger = logging.getLogger(__name__)
CELL = 8  # pixels of a hint per cell of the latent, for every model that there is a ControlNeXt for
PIECE_PIXELS = 2**21  # of the hints that go through the network at once: the host budgets no memory for them
KEPT_BYTES = 2**29  # of what is kept for a run, per node

Uncond = Literal["auto", "both", "cond only"]


@dataclass(frozen=True, eq=False)
class ControlNeXt:
    """A file as the host's patcher; `variants` are those that it may be.

    `stem_padding` None leaves it to the variant.
    """

    name: str
    layout: Layout
    scale: float
    variants: tuple[str, ...]
    stem_padding: int | None
    network: ModelPatcher
    unet: UNetWeights | None = None


class HintKey(NamedTuple):
    """A part of one hint picture, for a latent of `size` (h, w)."""

    index: int
    size: tuple[int, int]
    area: Area | None


class Chunk(NamedTuple):
    """A chunk that the hint acts on; `images` are those of its rows in the batch."""

    gain: float
    info: ChunkInfo | None
    images: Sequence[int]
    hints: list[HintKey]  # one for all rows, or one for each


@dataclass(frozen=True, eq=False)
class Hint:
    """Settings of one ControlNeXt on one model, and the term that it adds."""

    control: ControlNeXt
    variant: Variant
    image: Tensor  # (n, 3, height, width) in 0..1
    strength: float
    uncond: Uncond
    mask: Tensor | None  # (m, height, width)

    def __call__(self, call: FeatureCall) -> Tensor | None:
        """The term (chunks * b, c, h, w); None where no chunk is acted on."""
        features = call.feature.chunk(len(call.chunks))
        self._check(call, features)
        gains = [self._gain(is_negative(call.options, label)) for label in call.labels]
        if not any(gains):
            return None
        infos = [info_of(call.options, chunk) for chunk in call.chunks]
        check_whole(call.options, infos, "hint", "a ControlNeXt")
        return torch.cat([
            self._term(call, i, feature, self._chunk(call, i, len(feature), gain, infos[i]))
            if gain else torch.zeros_like(feature)
            for i, (feature, gain) in enumerate(zip(features, gains, strict=True))
        ])  # fmt: skip

    def _check(self, call: FeatureCall, features: Sequence[Tensor]) -> None:
        """RuntimeError where the rows are not those that the host tells of, or nobody tells what they show."""
        if len(features) != len(call.labels):
            raise RuntimeError(
                f"A ControlNeXt should find the rows of {len(call.labels)} prompts, but found {len(call.feature)} "
                f"rows: another pack sends them in groups of its own. Remove that pack from the model."
            )
        if CONDS not in call.options and "sample_sigmas" in call.options:
            raise RuntimeError(
                "A ControlNeXt that a hook brings cannot know which part of the picture a prompt sees. Put ControlNeXt "
                "Apply on the model itself."
            )

    def _gain(self, negative: bool) -> float:
        gain = self.variant.gain(self.control.scale)
        if negative and self.uncond == "cond only":
            gain = 0.0
        elif negative and self.uncond == "auto" and self.variant.uncond is not None:
            gain = self.variant.uncond
        return gain * self.strength

    def _chunk(self, call: FeatureCall, place: int, rows: int, gain: float, info: ChunkInfo | None) -> Chunk:
        images = images_of(call.options, place, rows)
        numbers = self._numbers(call, images)
        if self.variant.first_frame_in_windows and images_in_window(call.options, rows) is not None:
            numbers = [0, *numbers[1:]]
        if len(set(numbers)) == 1:
            numbers = numbers[:1]
        size = tuple(call.options["original_shape"][-2:]) if info is None else info.size
        area = None if info is None else info.area
        return Chunk(gain, info, images, [HintKey(number, size, area) for number in numbers])

    def _numbers(self, call: FeatureCall, images: Sequence[int]) -> Sequence[int]:
        """Which hint each image has: frames beyond the last have the last, for pictures they begin again."""
        count = len(self.image)
        if self.variant.family != "SVD":
            return [image % count for image in images]
        if 1 < count <= max(images):
            run = run_in(call.options)
            run.once((self, "too few"), lambda: logger.warning("%d hints are too few: the last is repeated", count))
        return clamped(images, count)

    def _term(self, call: FeatureCall, place: int, feature: Tensor, chunk: Chunk) -> Tensor:
        run = run_in(call.options)
        timesteps = call.timesteps.chunk(len(call.chunks))[place]
        term = match_statistics(self._control(run, call, chunk.hints, timesteps), feature) * chunk.gain
        if self.mask is not None:
            term = term * self._mask_rows(run, feature, chunk)
        return term.to(feature.dtype)

    def _control(self, run: Run, call: FeatureCall, hints: Sequence[HintKey], timesteps: Tensor) -> Tensor:
        """(hints, c, h, w), standardised; made once per step, only for hints that nobody has asked for yet."""
        like, grid = call.feature, tuple(call.feature.shape[-2:])
        now = self._now(run, call)
        made: dict[HintKey, Tensor] = run.once_at(now, (self, grid, like.dtype, like.device), dict)
        missing = list(dict.fromkeys(hint for hint in hints if hint not in made))
        for piece in _pieces(missing):
            at = torch.cat([timesteps[hints.index(hint)][None] for hint in piece])  # a list as index would wait
            out = self.control.network.model(self._prepared(run, piece, like), at)
            made.update(zip(piece, standardise(out, grid, self.variant.normalization).split(1), strict=True))
        return made[hints[0]] if len(hints) == 1 else torch.cat([made[hint] for hint in hints])

    def _now(self, run: Run, call: FeatureCall) -> Tensor | float:
        """What tells this step from others. Context windows each bring a tensor of their own, so there it is read."""
        now = call.options.get("sigmas", call.timesteps)
        rows = len(call.feature) // len(call.chunks)
        return now if images_in_window(call.options, rows) is None else run.sigma(now)

    def _prepared(self, run: Run, hints: Sequence[HintKey], like: Tensor) -> Prepared:
        """What of the network does not depend on the noise level; kept for the run as far as there is room."""
        kept: dict[HintKey, Prepared] = run.once((self, "prepared", like.dtype, like.device), dict)
        if not all(hint in kept for hint in hints):
            images = torch.cat([self._picture(run, hint) for hint in hints]).to(like)
            padding = self.control.stem_padding
            padding = self.variant.stem_padding if padding is None else padding
            made = self.control.network.model.prepare(images, padding)
            room = KEPT_BYTES - sum(part.nbytes for old in kept.values() for part in old)
            if sum(part.nbytes for part in made) <= room:
                rows = zip(*(part.split(1) for part in made), strict=True)
                kept.update((hint, Prepared(*row)) for hint, row in zip(hints, rows, strict=True))
            return made
        if len(hints) == 1:
            return kept[hints[0]]
        return Prepared(*(torch.cat(parts) for parts in zip(*(kept[hint] for hint in hints), strict=True)))

    def _picture(self, run: Run, hint: HintKey) -> Tensor:
        """(1, 3, 8 * h, 8 * w) of what the network is shown of the picture."""
        h, w = (CELL * cells for cells in hint.size)
        whole = run.once((self, "picture", hint.index, h, w), lambda: stretched(self.image[hint.index][None], h, w))
        if hint.area is None:
            return whole
        h, w, top, left = (CELL * cells for cells in hint.area)
        return whole[..., top : top + h, left : left + w]

    def _mask_rows(self, run: Run, feature: Tensor, chunk: Chunk) -> Tensor:
        """(1 or b, 1, h, w)."""
        grid = tuple(feature.shape[-2:])
        key = (self, "mask", grid, chunk.info, tuple(chunk.images), feature.device)

        def make() -> Tensor:
            (rows,) = on_grid(self.mask, grid, [chunk.info], [chunk.images])
            return rearrange(rows, "b (h w) one -> b one h w", h=grid[0]).to(feature.device)

        return run.once(key, make)


def add_hint(model: ModelPatcher, hint: Hint, site: FeatureSite, span: Span) -> ModelPatcher:
    """A clone of `model` that follows a hint."""
    model = load_with(add_feature_layer(model, site, hint, span), hint.control.network)
    install_chunk_infos(model)
    return model


def stretched(image: Tensor, h: int, w: int) -> Tensor:
    """(n, 3, h, w) from pictures of any size, without cutting, as the official pipelines do (Lanczos)."""
    if image.shape[-2:] == (h, w):
        return image
    return comfy.utils.common_upscale(image, w, h, "lanczos", "disabled")


def _pieces(hints: Sequence[HintKey]) -> Iterator[Sequence[HintKey]]:
    """Hints of one size, in groups that the memory is thought to hold."""
    if not hints:
        return
    cells = hints[0].size if hints[0].area is None else hints[0].area[:2]
    step = max(1, PIECE_PIXELS // (CELL * CELL * cells[0] * cells[1]))
    for start in range(0, len(hints), step):
        yield hints[start : start + step]
