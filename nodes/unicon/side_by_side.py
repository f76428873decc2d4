"""UniCon (2410.11439): an image x and its condition y, sampled side by side, look at each other in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any
from uuid import UUID

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.layers.attention import Call
from ...engine.layers.of_host import host_attention
from ...engine.layers.projections import AttentionState
from ...engine.rows.chunk import Chunk, add, pick_each
from ...engine.sites import Site
from ...engine.unet import Transformer
from ...models.unicon.files import UniConParts
from ...models.unicon.network import AttentionLoRA, Projected
from ...models.unicon.network import UniCon as Network
from ...models.unicon.stacks import ATTENTIONS

APART = (
    "UniCon needs image and condition together in one call of the model, but another pack sends them apart or more "
    "than once. Remove that pack from the model."
)


@dataclass(frozen=True, eq=False)
class UniCon:
    """A file as the host's patcher."""

    name: str
    trigger: str
    network: ModelPatcher
    parts: UniConParts


@dataclass(frozen=True)
class BlockNumbers:
    """The numbers of a file's blocks in its network by site, and the paths of their attentions in a model."""

    joints: Mapping[Site, int]
    conditions: Mapping[Site, int]
    paths: Mapping[Site, str]

    @classmethod
    def of(cls, parts: UniConParts, blocks: Mapping[str, Transformer]) -> BlockNumbers:
        """Returns the numbers of a file's blocks in a model whose blocks have these names."""
        joints = {blocks[name].site("attn1"): i for i, name in enumerate(parts.joints)}
        conditions = {blocks[name].site(kind): i for i, name in enumerate(parts.conditions) for kind in ATTENTIONS}
        used = [blocks[name] for name in dict.fromkeys((*parts.joints, *parts.conditions))]
        paths = {block.site(kind): f"{block.path}.{kind}" for block in used for kind in ATTENTIONS}
        return cls(joints, conditions, {site: paths[site] for site in {**joints, **conditions}})


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Settings of one UniCon on one model, and the layer around the attentions of its blocks."""

    network: Network
    owner: UUID  # the partner whose rows are the condition
    numbers: BlockNumbers
    strength_x: float = 1.0
    strength_y: float = 1.0
    name: str = "UniCon"

    def acts(self, chunks: Sequence[Chunk]) -> bool:
        """Returns whether rows of the partner are in the call."""
        return any(chunk.group.owner == self.owner for chunk in chunks)

    def project(self, state: AttentionState, call: Call) -> Call:
        """Returns the call with the condition's LoRA on its rows of q, k and v."""
        lora = self._lora(call.site)
        if lora is None:
            return call
        if len(call.k) != len(call.q) or len(call.v) != len(call.q):
            call.check_rows()  # raises
        rows = self._rows(call)
        q, k, v = lora.on_projections((call.q, call.k, call.v), state.inputs, rows)
        return call.changed(q=q, k=k, v=v)

    def add(self, state: AttentionState, out: Tensor) -> Tensor:
        """Returns the output (b, tokens, c) with the condition's LoRA and the terms of the joint attention."""
        call, lora = state.call, self._lora(state.call.site)
        if lora is not None:
            out = lora.on_output(out, state.attended, self._rows(call))
        return self._with_joint(state, out) if call.site in self.numbers.joints else out

    def _lora(self, site: Site) -> AttentionLoRA | None:
        number = self.numbers.conditions.get(site)
        return None if number is None else self.network.conditions[number][site.kind]

    def _rows(self, call: Call) -> slice:
        """Returns the rows of the condition, whose groups follow each other.

        Raises RuntimeError if another pack sends them apart from the image, or more than once.
        """
        ours = [chunk.index for chunk in call.chunks if chunk.group.owner == self.owner]
        if not ours or ours[-1] - ours[0] >= len(ours) or any(chunk.is_regional for chunk in call.chunks):
            raise RuntimeError(APART)
        per_group = len(call.q) // len(call.chunks)
        return slice(ours[0] * per_group, (ours[-1] + 1) * per_group)

    def _with_joint(self, state: AttentionState, out: Tensor) -> Tensor:
        call = state.call
        conditions = [chunk for chunk in call.chunks if chunk.group.owner == self.owner and chunk.group.is_paired]
        if not conditions:
            return out
        image_of = {chunk.group.chunk: chunk.index for chunk in call.chunks if chunk.group.branch == "image"}
        if not {chunk.group.chunk for chunk in conditions} <= {*image_of}:
            raise RuntimeError(APART)
        images, own = [image_of[chunk.group.chunk] for chunk in conditions], [chunk.index for chunk in conditions]
        if call.q.shape[1] != prod(call.shape):  # image and condition must have a token for each place
            call.grid(call.q)  # raises
        projected, count = self._projected(state), len(call.chunks)
        x, y = (Projected(*parts) for parts in pick_each(projected, (images, own), count))
        joint = self.network.joints[self.numbers.joints[call.site]]
        term_x, term_y = joint(x, y, partial(host_attention, options=call.options), state.attention.to_out)
        terms = ((images, term_x, self.strength_x), (own, term_y, self.strength_y))
        return add(out, count, *((at, _scaled(term, strength)) for at, term, strength in terms if strength))

    @staticmethod
    def _projected(state: AttentionState) -> Projected:
        """Returns the features with their q, k and v, which are made anew if another pack's patch gave other tokens."""
        hidden, context, value = state.inputs
        if context is hidden and value is hidden:
            return Projected(hidden, state.call.q, state.call.k, state.call.v)
        attention = state.attention
        return Projected(hidden, state.call.q, attention.to_k(hidden), attention.to_v(hidden))


def _scaled(term: Tensor, strength: float) -> Tensor:
    return term if strength == 1 else term * strength


def checked_unicon(unicon: Any) -> UniCon:
    """Returns a UniCon as it is. Raises ValueError if it is something else."""
    if not isinstance(unicon, UniCon):
        raise ValueError(
            f"unicon should come from Load UniCon, but is {type(unicon).__name__}. Put that node before it."
        )
    return unicon
