"""One call of one attention of a transformer, as layers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..layers.call import LayerCall
from ..rows.chunk import Part, options_with, part_of, pick
from ..sites import Site


@dataclass(frozen=True, eq=False, kw_only=True)
class DiTCall(LayerCall):
    """Queries, keys and values (rows, heads, tokens, d) after norms and positions. Keys may have fewer heads.

    `picture` says which of the queries are the picture. Its tokens fill `grid`: frames, height and width. `is_joint`
    tells whether the keys are those tokens too, and not a text. `text` says which of them are text. `mask` is the
    host's, or None. `positions` (1 or rows, 1, tokens, d / 2, 2, 2) are the rotations by which the host has turned q
    and k, if the block is given them. Terms (rows, tokens, c) in `after` are added to the picture behind the block.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    site: Site
    heads: int
    mask: Tensor | None
    picture: slice
    grid: tuple[int, int, int]
    is_joint: bool
    text: slice
    positions: Tensor | None = None
    after: list[Tensor] = field(default_factory=list)

    @property
    def beside_text(self) -> slice:
        """Which tokens of a joint attention are not text: those of the picture, of references and of padding."""
        return slice(self.text.stop, self.q.shape[2]) if self.text.start == 0 else slice(0, self.text.start)

    @property
    def rest(self) -> list[slice]:
        """Which tokens are not the picture: those of the text, of references and of padding."""
        parts = (slice(0, self.picture.start), slice(self.picture.stop, self.q.shape[2]))
        return [part for part in parts if part.stop > part.start]

    def values(self) -> Tensor:
        """Returns the values in the form of a result (rows, tokens, heads * d)."""
        v = self.v
        if v.shape[1] != self.heads:
            v = v.repeat_interleave(self.heads // v.shape[1], dim=1)
        return v.transpose(1, 2).flatten(2)

    def only(self, numbers: Sequence[int]) -> DiTCall:
        """Returns the same call for some of the chunks, by number."""
        return self if len(numbers) == len(self.chunks) else self.of_part(part_of(self.chunks, numbers))

    def of_part(self, part: Part) -> DiTCall:
        """Returns the same call for a part of the chunks that is not all of them."""
        (numbers, chunks), total = part, len(self.chunks)
        q, k, v = (pick(rows, numbers, total) for rows in (self.q, self.k, self.v))
        mask = self.mask
        if mask is not None and mask.ndim > 2 and len(mask) == len(self.q):
            mask = pick(mask, numbers, total)
        positions = self.positions
        if positions is not None and len(positions) == len(self.q):
            positions = pick(positions, numbers, total)
        return replace(
            self, q=q, k=k, v=v, mask=mask, positions=positions, options=options_with(self.options, chunks),
            chunks=chunks,
        )  # fmt: skip

    def of_keys(self, k: Tensor, v: Tensor, mask: Tensor | None) -> DiTCall:
        """Returns the same call with other keys and values (rows, heads, tokens, d), and their mask."""
        return self.changed(k=k, v=v, mask=mask)

    def of_queries(self, part: slice) -> DiTCall:
        """Returns the same call for some of the queries. None of them counts as the picture."""
        mask = self.mask
        if mask is not None and mask.ndim > 1 and mask.shape[-2] == self.q.shape[2] > 1:
            mask = mask[..., part, :]
        return self.changed(q=self.q[:, :, part], mask=mask, picture=slice(0, 0))

    def mask_of_rest(self) -> Tensor | None:
        """Returns the mask (b, heads, n, m) of the keys that are not the picture, with 1 for what is the same for all.

        The n queries are those of the picture. None if there is no mask.
        """
        if self.mask is None:
            return None
        mask = by_heads(self.mask)
        if mask.shape[-2] > 1:
            mask = mask[..., self.picture, :]
        return torch.cat([mask[..., part] for part in self.rest], -1)

    def with_picture_queries(self, change: Callable[[Tensor, tuple[int, int]], Tensor]) -> DiTCall:
        """Returns the same call with changed queries of the picture.

        `change` is given the queries of each frame (rows * frames, h * w, heads * d) and (h, w).
        """
        rows, heads, _, d = self.q.shape
        t, h, w = self.grid
        frames = self.q[:, :, self.picture].transpose(1, 2).reshape(rows * t, h * w, heads * d)
        changed = change(frames, (h, w)).reshape(rows, t * h * w, heads, d).transpose(1, 2)
        q = self.q.clone()
        q[:, :, self.picture] = changed
        return self.changed(q=q)


def by_heads(mask: Tensor) -> Tensor:
    """Returns a mask of the host (b or 1, heads or 1, queries or 1, keys).

    It may come as (queries, keys), (rows, queries, keys) or (rows, heads, queries, keys).
    """
    while mask.ndim < 4:
        mask = mask.unsqueeze(mask.ndim - 2)
    return mask
