"""The entries of a negative prompt that a method reads inside the attention, with their weights, places and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.dit.call import DiTCall
from ...engine.dit.own_texts import OwnText
from ...engine.layers.attention import Call
from ...engine.layers.call import VIDEO
from ...engine.rows.chunk import Chunk
from ...engine.rows.images import images_of_window
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.span import Span
from .sockets import checked_mask, finite_tensor, shape_text


@dataclass(frozen=True, eq=False)
class NegativeText:
    """One entry of a negative prompt: text (1 or n, tokens, c), and its weight, place and time.

    `area` holds height, width, top and left, in cells or as shares of the picture. `frames` holds how many frames of a
    video the area has, and its first one, in the same units. `own` is the entry as a transformer reads it.
    """

    text: Tensor
    strength: float
    mask: Tensor | None  # (m, height, width)
    area: tuple[float, float, float, float] | None
    frames: tuple[float, float] | None
    is_share: bool
    is_everywhere: bool
    span: Span
    own: OwnText

    def weights(self, grid: tuple[int, int], chunks: Sequence[Chunk], size: tuple[int, int]) -> Tensor:
        """Returns the weight of the text (chunks, 1 or b, tokens, 1) on a grid, in a latent of `size` cells."""
        shown = torch.ones(1, *size) if self.mask is None else self.mask.float()
        if self.area is not None:
            shown = shown * self._inside(shown.shape[-2:], size)
        return mask_on_grid(shown * self.strength, grid, chunks)

    def weights_of_video(
        self, grid: tuple[int, int], chunks: Sequence[Chunk], size: tuple[int, int], shown: Sequence[Sequence[int]],
        total: int,
    ) -> Tensor:  # fmt: skip
        """Returns the weight of the text (chunks, 1, frames * tokens, 1) on the grid of each frame that is shown.

        `shown` lists for each chunk which of `total` frames they are. As the host reads it, a mask of several pictures
        has one for each frame.
        """
        by_frame = [chunk._replace(images=tuple(frames)) for chunk, frames in zip(chunks, shown, strict=True)]
        weights = self.weights(grid, by_frame, size).expand(-1, len(shown[0]), -1, -1)
        if self.frames is not None:
            length, first = (round(part * total) if self.is_share else part for part in self.frames)
            inside = torch.tensor([[first <= i < first + max(1, length) for i in frames] for frames in shown])
            weights = weights * inside[..., None, None]
        return weights.flatten(1, 2)[:, None]

    def _inside(self, shape: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Returns a mask of a shape, 1 in the area and 0 elsewhere, for a latent of `size` cells."""
        h, w, top, left = self.area
        units = (shape[0], shape[1]) if self.is_share else (shape[0] / size[0], shape[1] / size[1])
        inside = torch.zeros(*shape)
        rows = slice(round(top * units[0]), round((top + h) * units[0]))
        columns = slice(round(left * units[1]), round((left + w) * units[1]))
        inside[rows, columns] = 1
        return inside


def negative_texts(negative: Any, width: int | None) -> list[NegativeText]:
    """Returns the entries of a negative prompt, for a model that reads `width` numbers per token.

    None stands for any width. Raises ValueError if it is not such a prompt.
    """
    if not isinstance(negative, list) or not negative:
        raise ValueError("negative should be a prompt, but holds none. Connect a CLIP Text Encode.")
    return [_negative_text(*entry, width) for entry in negative]


def _negative_text(text: Any, settings: dict[str, Any], width: int | None) -> NegativeText:
    width = text.shape[-1] if width is None and isinstance(text, Tensor) and text.ndim else width
    if not isinstance(text, Tensor) or text.ndim != 3 or text.shape[-1] != width or 0 in text.shape:
        raise ValueError(
            f"negative should be a text of {width} numbers per token, as the model reads it, but is "
            f"{shape_text(text)}. Encode it with the CLIP of this model."
        )
    area = settings.get("area")
    is_share = area is not None and area[0] == "percentage"
    area = None if area is None else tuple(area[1:] if is_share else area)
    frames = None
    if area is not None and len(area) == 6:  # of a video: frames, height and width, and where they start
        frames, area = (area[0], area[3]), (*area[1:3], *area[4:])
    mask = checked_mask(settings.get("mask"), "The mask of negative")
    span = Span(settings.get("start_percent", 0.0), settings.get("end_percent", 1.0))
    text = finite_tensor(text, "negative", "finite numbers")
    return NegativeText(
        text=text,
        strength=settings.get("strength", 1.0) * (settings.get("mask_strength", 1.0) if mask is not None else 1.0),
        mask=mask,
        area=area,
        frames=frames,
        is_share=is_share,
        is_everywhere=mask is None and area is None,
        span=span,
        own=OwnText((text, settings), span),
    )


def weights_in(call: Call | DiTCall, text: NegativeText, tokens: int) -> Tensor:
    """Returns the weight of a text (rows, tokens, 1). Beside the picture, a text for a place of it has none."""
    if text.is_everywhere:
        return call.q.new_full((1, 1, 1), text.strength)
    call.check_whole(call.chunks, "mask", "the negative of Normalized Attention Guidance")
    size = next((chunk.info.size for chunk in call.chunks if chunk.info is not None), call.size)
    grid = call.grid if isinstance(call, DiTCall) else call.grid(call.q)
    shown, total = _frames(call, grid[0]) if isinstance(call, DiTCall) else ((), 1)
    per_chunk = len(call.q) // len(call.chunks)

    def make() -> Tensor:
        if total > 1:
            weights = text.weights_of_video(grid[1:], call.chunks, size, shown, total)
        else:
            weights = text.weights(grid[-2:], call.chunks, size)
        weights = weights.expand(-1, per_chunk, -1, -1).flatten(0, 1).to(call.q)
        if not isinstance(call, DiTCall):
            return weights
        start = call.picture.start - (call.beside_text.start if call.is_joint else 0)
        whole = weights.new_zeros(len(weights), tokens, 1)
        whole[:, start : start + weights.shape[1]] = weights
        return whole

    return call.run.once((text, "weights", grid, shown, tokens, size, shown_by(call.chunks), call.q.dtype), make)


def _frames(call: DiTCall, count: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Returns which frames of a video each chunk shows, of which there are `count`, and how many the video has."""
    infos = [chunk.info for chunk in call.chunks]
    starts = [0 if info is None else info.start for info in infos]
    total = max((info.frames for info in infos if info is not None), default=count)
    window = call.window
    if window is None or window.dim == 0:
        return tuple(tuple(range(start, start + count)) for start in starts), total
    images = images_of_window(window, total)
    shown = tuple(tuple(images[i] for i in range(start, min(start + count, len(images)))) for start in starts)
    latent = call.run.start[1] if call.run.start else None  # some hosts do not tell a window how long the video is
    is_video = isinstance(latent, Tensor) and latent.ndim == VIDEO
    return shown, latent.shape[2] if is_video else getattr(window, "total_frames", max(images) + 1)


def is_single(texts: Sequence[NegativeText]) -> bool:
    """Whether there is one text, for the whole picture. Then nothing has to be weighed."""
    return len(texts) == 1 and texts[0].is_everywhere


def mean_of_texts(
    call: Call | DiTCall, texts: Sequence[NegativeText], outs: Sequence[Tensor], positive: Tensor
) -> Tensor:  # fmt: skip
    """Returns the weighted mean of all texts (rows, tokens, c), or the positive in places where no text counts."""
    if is_single(texts):
        return outs[0]
    weights = [weights_in(call, text, positive.shape[1]) for text in texts]
    total = sum(weights)
    mean = sum(weight * out for weight, out in zip(weights, outs, strict=True)) / total.clamp_min(1e-6)
    return torch.where(total > 1e-6, mean, positive)
