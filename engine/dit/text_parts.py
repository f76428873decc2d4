"""Parts of a transformer that read texts of several lengths in one call, before its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..rows.chunk import of_chunks
from .passage import Passage


def parts_for_texts(passage: Passage, network: Any) -> dict[str, Any]:
    """Returns what stands in for parts of a network by their names, if the texts of the call differ in length."""
    texts, family = passage.texts, passage.family
    if texts is None or not texts.are_padded:
        return {}
    parts: dict[str, Any] = {}
    if family.mixes_text:
        filler = getattr(network, "cap_pad_token", None)
        parts[family.reads_text] = _EachLength(getattr(network, family.reads_text), passage, filler)
    if family.text_moves_picture:
        behind_text, own = texts.moved
        first = hasattr(network, "pad_tokens_multiple")  # older hosts count the positions of a text from 0 on
        parts["rope_embedder"] = _PictureAt(network.rope_embedder, behind_text + first, own + first)
    return parts


@dataclass(frozen=True)
class _EachLength:
    """Reads the texts of each length by themselves, for tokens see each other there. Then it fills them up."""

    part: nn.Module
    passage: Passage
    filler: Tensor | None  # (1, c), with which the network itself fills texts up

    def __call__(self, text: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chunks, texts = self.passage.chunks, self.passage.texts
        numbers: dict[int, list[int]] = {}
        for chunk in chunks:
            numbers.setdefault(texts.own(chunk)[0], []).append(chunk.index)
        outs: list[Tensor | None] = [None] * len(chunks)
        for length, of_length in numbers.items():
            own, *others = (of_chunks(value, of_length, len(chunks), len(text)) for value in (text, *args))
            named = {name: of_chunks(value, of_length, len(chunks), len(text)) for name, value in kwargs.items()}
            out = self._filled(self.part(own[:, :length], *others, **named), text.shape[1])
            for number, rows in zip(of_length, out.chunk(len(of_length)), strict=True):
                outs[number] = rows
        return torch.cat(outs)

    def _filled(self, text: Tensor, length: int) -> Tensor:
        rows, own, c = text.shape
        if self.filler is None:
            return torch.cat([text, text.new_zeros(rows, length - own, c)], 1)
        return torch.cat([text, self.filler.to(text).expand(rows, length - own, c)], 1)


@dataclass(frozen=True)
class _PictureAt:
    """Encodes positions with the picture where it is without the further rows."""

    part: nn.Module
    behind_text: int
    place: int

    def __call__(self, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.behind_text != self.place:
            positions = positions.clone()
            first = positions[..., 0]
            first.masked_fill_(first == self.behind_text, self.place)
        return self.part(positions, *args, **kwargs)
