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
from ...engine.rows.chunk import Chunk
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.span import Span
from .sockets import checked_mask, finite_tensor, shape_text


@dataclass(frozen=True, eq=False)
class NegativeText:
    """One entry of a negative prompt: text (1 or n, tokens, c), and its weight, place and time.

    `area` holds height, width, top and left, in cells or as shares of the picture. `own` is the entry as a transformer
    reads it.
    """

    text: Tensor
    strength: float
    mask: Tensor | None  # (m, height, width)
    area: tuple[float, float, float, float] | None
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
    if area is not None and len(area) == 6:  # of a video: frames, height and width, and where they start
        area = (*area[1:3], *area[4:])
    mask = checked_mask(settings.get("mask"), "The mask of negative")
    span = Span(settings.get("start_percent", 0.0), settings.get("end_percent", 1.0))
    text = finite_tensor(text, "negative", "finite numbers")
    return NegativeText(
        text=text,
        strength=settings.get("strength", 1.0) * (settings.get("mask_strength", 1.0) if mask is not None else 1.0),
        mask=mask,
        area=area,
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
    frames, *grid = call.grid if isinstance(call, DiTCall) else (1, *call.grid(call.q))
    per_chunk = len(call.q) // len(call.chunks)

    def make() -> Tensor:
        weights = text.weights(tuple(grid), call.chunks, size)
        weights = weights.expand(-1, per_chunk, -1, -1).flatten(0, 1).to(call.q)
        if not isinstance(call, DiTCall):
            return weights
        start = call.picture.start - (call.beside_text.start if call.is_joint else 0)
        whole = weights.new_zeros(len(weights), tokens, 1)
        whole[:, start : start + frames * weights.shape[1]] = weights.repeat(1, frames, 1)
        return whole

    return call.run.once((text, "weights", tuple(grid), tokens, size, shown_by(call.chunks), call.q.dtype), make)
