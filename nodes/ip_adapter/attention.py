"""IP-Adapter (2308.06721): image tokens as a second text, with a separate attention in every layer.

    out = Attention(q, k_text, v_text) + weight * Attention(q, tokens W_k, tokens W_v)        (equation 5)

The weight is inside v, and for some kinds of scaling inside k (models/ip_adapter/weights.py).

The second term's k and v do not change during a run, so they are made once and kept on the run's device. The host
casts the adapter's weights to the device one matrix at a time, and they do not stay there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...engine.layers.attention import Attend, Call
from ...engine.network import Named, add_attention_layer
from ...engine.rows.chunk import Chunk, add, pick
from ...engine.rows.images import clamped
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.run import Run
from ...engine.sites import Site
from ...engine.span import Span
from ...models.ip_adapter.files import Kind
from ...models.ip_adapter.weights import LayerWeight, Scaling, weight_keys_and_values

TokenRole = Literal["cond", "uncond"]


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """A file as the host's patchers.

    `lora` is by number of the attention. `clip_vision` is the image encoder that another pack loaded with the file.
    `fingerprint` is the same for files with one projection, whatever their names.
    """

    name: str
    fingerprint: str
    kind: Kind
    projection: ModelPatcher
    layers: ModelPatcher
    sizes: Sequence[tuple[int, int]]
    lora: Mapping[str, Tensor]
    clip_vision: ClipVisionModel | None = None


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """cond (images, tokens, context) and uncond (1, tokens, context).

    `black` is the uncond of ComfyUI_IPAdapter_plus. `weights` (images,) are those of a concat, or of each frame. They
    are all 0 if nothing of the pictures counts. The last two fields say which file made the tokens.
    """

    cond: Tensor
    uncond: Tensor
    black: Tensor
    weights: Tensor
    made_by: str
    fingerprint: str

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the pictures counts."""
        return not self.weights.any()

    def emptied(self) -> ImageTokens:
        """Returns the tokens with weights by which nothing counts."""
        return replace(self, weights=torch.zeros_like(self.weights))


@dataclass(frozen=True, eq=False)
class SiteWeight:
    """Which matrices of the file an attention uses, how strongly, and whether positive and negative are swapped."""

    number: int  # of the text attention in the file
    layer: LayerWeight


class ActingChunk(NamedTuple):
    """A chunk on which the image acts, and which tokens it reads."""

    role: TokenRole
    chunk: Chunk


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Settings of one adapter on one model, and the layer that acts on its attentions."""

    adapter: IPAdapter
    cond: Tensor  # (images, tokens, context)
    uncond: Tensor  # (1 or images, tokens, context): one for each image if the images are one prompt together
    weights: Tensor  # (images,), of frames
    copies: Tensor | None  # (images,): added to the logits of images that are one prompt together, if they differ
    sites: Mapping[Site, SiteWeight]
    scaling: Scaling
    mask: Tensor | None  # (m, height, width)
    per_frame: bool
    only_for: str

    def __call__(self, call: Call, below: Attend) -> Tensor:
        """Returns the attention (b, tokens, c) with the image's term on the rows that it is for."""
        out = below(call)
        if (self.only_for or self.mask is not None) and call.lacks_conds:
            raise RuntimeError(
                "An IP-Adapter that a hook brings cannot know the areas and names of prompts. Put IP-Adapter Apply on "
                "the model itself, or leave mask and only_for empty."
            )
        acting = [ActingChunk(role, chunk) for chunk in call.chunks if (role := self._role(chunk, call.site))]
        if not acting:
            return out
        numbers = [acts.chunk.index for acts in acting]
        count, q = len(call.chunks), call.q
        image = self._attend(call, q if len(acting) == count else pick(q, numbers, count), acting)
        return add(out, count, (numbers, image))

    def _role(self, chunk: Chunk, site: Site) -> TokenRole | None:
        if self.only_for and (chunk.info is None or self.only_for not in chunk.info.names):
            return None
        if self.sites[site].layer.swapped:
            # The positive would read zeros, whose keys and values are zeros and add nothing.
            return "cond" if chunk.is_negative else None
        return "uncond" if chunk.is_negative else "cond"

    def _attend(self, call: Call, q: Tensor, acting: Sequence[ActingChunk]) -> Tensor:
        """Returns the image's term (chunks * b, tokens, c), masked, for queries q of the same shape."""
        count, tokens = len(acting), q.shape[1]
        if self.per_frame:
            out = attention_pytorch(q, *self._per_row(call, acting), call.heads)
        else:
            # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
            k, v = self._per_chunk(call, acting)
            q = rearrange(q, "(chunks b) n c -> chunks (b n) c", chunks=count)
            out = attention_pytorch(q, k, v, call.heads, mask=self._bias(call.run, k))
            out = rearrange(out, "chunks (b n) c -> (chunks b) n c", n=tokens)
        if self.mask is None:
            return out
        masked = rearrange(out, "(chunks b) n c -> chunks b n c", chunks=count) * self._mask_rows(call, acting)
        return rearrange(masked, "chunks b n c -> (chunks b) n c")

    def _per_chunk(self, call: Call, acting: Sequence[ActingChunk]) -> tuple[Tensor, Tensor]:
        """Returns k and v (chunks, images * tokens, c), with the weight inside."""

        def stack() -> tuple[Tensor, Tensor]:
            pairs = [self._project(call, acts.role) for acts in acting]
            return tuple(
                torch.stack([rearrange(part, "images n c -> (images n) c") for part in parts])
                for parts in zip(*pairs, strict=True)
            )

        roles = tuple(acts.role for acts in acting)
        return call.run.once((self, call.site, roles, call.q.dtype, call.q.device), stack)

    def _per_row(self, call: Call, acting: Sequence[ActingChunk]) -> tuple[Tensor, Tensor]:
        """Returns k and v (chunks * b, tokens, c): those of image i for row i, and the last ones for further rows."""
        parts = []
        for role, chunk in acting:
            pair = self._project(call, role)
            rows = self._rows(call, chunk.images, len(pair[0]))
            parts.append([part.index_select(0, rows) for part in pair])
        k, v = (torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))
        images = tuple(i for acts in acting for i in acts.chunk.images)
        own = call.run.once(
            (self, "weights", images, v.dtype, v.device),
            lambda: self.weights[clamped(images, len(self.weights))].to(v)[:, None, None],
        )
        return weight_keys_and_values(k, v, self.sites[call.site].layer.weight * own, self.scaling)

    def _rows(self, call: Call, images: tuple[int, ...], count: int) -> Tensor:
        device = call.q.device
        key = (self, "rows", images, count, device)
        return call.run.once(key, lambda: torch.tensor(clamped(images, count), device=device))

    def _project(self, call: Call, role: TokenRole) -> tuple[Tensor, Tensor]:
        """Returns k and v (images, tokens, c) in the type and on the device of q, made once per run.

        Those of frames get their weights later.
        """
        like, site_weight = call.q, self.sites[call.site]

        def project() -> tuple[Tensor, Tensor]:
            tokens = (self.cond if role == "cond" else self.uncond).to(like.device, torch.float32)
            k, v = self.adapter.layers.model.keys_and_values(site_weight.number, tokens)
            if not self.per_frame:
                k, v = weight_keys_and_values(k, v, site_weight.layer.weight, self.scaling)
            return k.to(like.dtype), v.to(like.dtype)

        return call.run.once((self, call.site, role, like.dtype, like.device), project)

    def _bias(self, run: Run, k: Tensor) -> Tensor | None:
        """Returns what is added to the logits (1, 1, images * tokens), or None if all images weigh the same."""
        if self.copies is None:
            return None
        per_image = k.shape[1] // len(self.copies)
        key = (self, "bias", k.dtype, k.device)
        return run.once(key, lambda: self.copies.repeat_interleave(per_image)[None, None].to(k))

    def _mask_rows(self, call: Call, acting: Sequence[ActingChunk]) -> Tensor:
        """Returns the mask (chunks, 1 or b, tokens, 1) on the grid of the attention."""
        chunks, grid = [acts.chunk for acts in acting], call.grid(call.q)
        call.check_whole(chunks, "mask", "an IP-Adapter")
        key = (self, "mask", grid, shown_by(chunks), call.q.dtype, call.q.device)
        return call.run.once(key, lambda: mask_on_grid(self.mask, grid, chunks).to(call.q))


def add_image_prompt(model: ModelPatcher, prompt: ImagePrompt, span: Span) -> ModelPatcher:
    """Returns a clone of `model` that is prompted with images too."""
    return add_attention_layer(model, prompt.sites, Named("IP-Adapter", prompt), span)
