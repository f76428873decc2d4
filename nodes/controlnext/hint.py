"""ControlNeXt (2408.06070): a hint becomes one feature with the statistics of the UNet's feature, and is added to it.

    h + gain * strength * CN(control(hint, t), h)

The network runs once per step on each different hint, however many chunks and context windows ask for it. The part of
it that does not depend on the noise level is kept for the run.
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
from ...engine.network import Named, add_feature_layer
from ...engine.rows.chunk import Chunk
from ...engine.rows.conds import Area
from ...engine.rows.images import clamped
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.run import Run
from ...engine.span import Span
from ...engine.unet_weights import UNetWeights
from ...models.controlnext.cross_normalization import match_statistics, standardise
from ...models.controlnext.files import Variant
from ...models.controlnext.network import Layout, Prepared
from ...models.numbers import CELL

logger = logging.getLogger(__name__)
PIECE_PIXELS = 2**21  # of the hints that go through the network at once, because the host budgets no memory for them
KEPT_BYTES = 2**29  # limit of what a node keeps for a run

UncondMode = Literal["auto", "both", "cond only"]


@dataclass(frozen=True, eq=False)
class ControlNeXt:
    """A file as the host's patcher, with the variants that the file may be.

    If `stem_padding` is None, the variant decides.
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


@dataclass(frozen=True, eq=False)
class Hint:
    """Settings of one ControlNeXt on one model, and the term that it adds."""

    control: ControlNeXt
    variant: Variant
    image: Tensor  # (n, 3, height, width) in 0..1
    strength: float
    uncond: UncondMode
    mask: Tensor | None  # (m, height, width)

    def __call__(self, call: FeatureCall) -> Tensor | None:
        """Returns the term (chunks * b, c, h, w), or None if no chunk gets any."""
        if call.lacks_conds:
            raise RuntimeError(
                "A ControlNeXt that a hook brings cannot know which part of the picture a prompt sees. Put ControlNeXt "
                "Apply on the model itself."
            )
        gains = [self._gain(chunk.is_negative) for chunk in call.chunks]
        if not any(gains):
            return None
        call.check_whole(call.chunks, "hint", "a ControlNeXt")
        parts = zip(call.chunks, call.split(call.feature), call.split(call.timesteps), gains, strict=True)
        return torch.cat([
            self._term(call, chunk, feature, timesteps, gain) if gain else torch.zeros_like(feature)
            for chunk, feature, timesteps, gain in parts
        ])  # fmt: skip

    def _gain(self, negative: bool) -> float:
        gain = self.variant.gain(self.control.scale)
        if negative and self.uncond == "cond only":
            gain = 0.0
        elif negative and self.uncond == "auto" and self.variant.uncond is not None:
            gain = self.variant.uncond
        return gain * self.strength

    def _hints(self, call: FeatureCall, chunk: Chunk) -> list[HintKey]:
        """Returns the part of a hint for each row of a chunk, or one for all rows."""
        numbers = self._numbers(call, chunk.images)
        if self.variant.first_frame_in_windows and call.images_in_window is not None:
            numbers = [0, *numbers[1:]]
        if len(set(numbers)) == 1:
            numbers = numbers[:1]
        size, area = (call.size, None) if chunk.info is None else (chunk.info.size, chunk.info.area)
        return [HintKey(number, size, area) for number in numbers]

    def _numbers(self, call: FeatureCall, images: Sequence[int]) -> Sequence[int]:
        """Returns the number of the hint of each image.

        If there are fewer hints than images, frames of a video repeat the last one, and pictures begin again.
        """
        count = len(self.image)
        if self.variant.family != "SVD":
            return [image % count for image in images]
        if 1 < count <= max(images):
            call.run.once(
                (self, "too few"), lambda: logger.warning("%d hints are too few: the last is repeated", count)
            )
        return clamped(images, count)

    def _term(self, call: FeatureCall, chunk: Chunk, feature: Tensor, timesteps: Tensor, gain: float) -> Tensor:
        """Returns what is added to the feature (b, c, h, w) of a chunk, in the same shape."""
        term = match_statistics(self._control(call, self._hints(call, chunk), timesteps), feature) * gain
        if self.mask is not None:
            term = term * self._mask_rows(call.run, feature, chunk)
        return term.to(feature.dtype)

    def _control(self, call: FeatureCall, hints: Sequence[HintKey], timesteps: Tensor) -> Tensor:
        """Returns the control (hints, c, h, w), standardised.

        The network runs only for hints whose control was not made yet in this step.
        """
        like, grid, run = call.feature, tuple(call.feature.shape[-2:]), call.run
        # Each context window brings another tensor of the noise level, so its value is read there.
        now = call.now if call.images_in_window is None else run.sigma(call.now)
        controls: dict[HintKey, Tensor] = run.once_at(now, (self, grid, like.dtype, like.device), dict)
        missing = list(dict.fromkeys(hint for hint in hints if hint not in controls))
        for piece in _pieces(missing):
            # A list as index would wait for the device.
            of_piece = torch.cat([timesteps[hints.index(hint)][None] for hint in piece])
            out = self.control.network.model(self._prepared(run, piece, like), of_piece)
            controls.update(zip(piece, standardise(out, grid, self.variant.normalization).split(1), strict=True))
        return controls[hints[0]] if len(hints) == 1 else torch.cat([controls[hint] for hint in hints])

    def _prepared(self, run: Run, hints: Sequence[HintKey], like: Tensor) -> Prepared:
        """Returns the part of the network that does not depend on the noise level, and keeps it if there is room."""
        kept: dict[HintKey, Prepared] = run.once((self, "prepared", like.dtype, like.device), dict)
        if not all(hint in kept for hint in hints):
            images = torch.cat([self._picture(run, hint) for hint in hints]).to(like)
            padding = self.control.stem_padding
            padding = self.variant.stem_padding if padding is None else padding
            prepared = self.control.network.model.prepare(images, padding)
            room = KEPT_BYTES - sum(part.nbytes for old in kept.values() for part in old)
            if sum(part.nbytes for part in prepared) <= room:
                rows = zip(*(part.split(1) for part in prepared), strict=True)
                kept.update((hint, Prepared(*row)) for hint, row in zip(hints, rows, strict=True))
            return prepared
        if len(hints) == 1:
            return kept[hints[0]]
        return Prepared(*(torch.cat(parts) for parts in zip(*(kept[hint] for hint in hints), strict=True)))

    def _picture(self, run: Run, hint: HintKey) -> Tensor:
        """Returns the part of the picture that the network is shown, (1, 3, 8 * h, 8 * w)."""
        h, w = (CELL * cells for cells in hint.size)
        whole = run.once((self, "picture", hint.index, h, w), lambda: stretched(self.image[hint.index][None], h, w))
        if hint.area is None:
            return whole
        h, w, top, left = (CELL * cells for cells in hint.area)
        return whole[..., top : top + h, left : left + w]

    def _mask_rows(self, run: Run, feature: Tensor, chunk: Chunk) -> Tensor:
        """Returns the mask (1 or b, 1, h, w) on the grid of the feature."""
        grid = tuple(feature.shape[-2:])
        key = (self, "mask", grid, shown_by([chunk]), feature.device)

        def make() -> Tensor:
            (rows,) = mask_on_grid(self.mask, grid, [chunk])
            return rearrange(rows, "b (h w) one -> b one h w", h=grid[0]).to(feature.device)

        return run.once(key, make)


def add_hint(model: ModelPatcher, hint: Hint, site: FeatureSite, span: Span) -> ModelPatcher:
    """Returns a clone of `model` that follows a hint."""
    return load_with(add_feature_layer(model, site, Named("The hint of ControlNeXt", hint), span), hint.control.network)


def stretched(image: Tensor, h: int, w: int) -> Tensor:
    """Returns pictures of any size stretched to (n, 3, h, w) without cropping, as the official pipelines do."""
    if image.shape[-2:] == (h, w):
        return image
    return comfy.utils.common_upscale(image, w, h, "lanczos", "disabled")


def _pieces(hints: Sequence[HintKey]) -> Iterator[Sequence[HintKey]]:
    """Yields hints of one size in groups that should fit into the memory."""
    if not hints:
        return
    cells = hints[0].size if hints[0].area is None else hints[0].area[:2]
    step = max(1, PIECE_PIXELS // (CELL * CELL * cells[0] * cells[1]))
    for start in range(0, len(hints), step):
        yield hints[start : start + step]
