"""IP-Adapter (2308.06721): image tokens as a second text, with a separate attention in every layer of a UNet.

    out = Attention(q, k_text, v_text) + weight * Attention(q, tokens W_k, tokens W_v)        (equation 5)

The weight is inside v, and for some kinds of scaling inside k (models/ip_adapter/weights.py).

The second term's k and v do not change during a run, so they are made once and kept on the run's device. The host
casts the adapter's weights to the device one matrix at a time, and they do not stay there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...engine.layers.attention import Attend, Call
from ...engine.network import Named, add_attention_layer
from ...engine.rows.chunk import add, pick
from ...engine.span import Span
from ...models.ip_adapter.weights import weight_keys_and_values
from .prompt import ActingChunk, ImagePrompt, TokenRole


class Acting(NamedTuple):
    """The chunks on which the image acts in a call, their numbers, and which tokens each of them reads."""

    chunks: Sequence[ActingChunk]
    numbers: Sequence[int]
    roles: tuple[TokenRole, ...]


class UNetImagePrompt(ImagePrompt):
    """The layer on the text attentions of a UNet."""

    def __call__(self, call: Call, below: Attend) -> Tensor:
        """Returns the attention (b, tokens, c) with the image's term on the rows that it is for."""
        out = below(call)
        acting = self._acting(call)
        if not acting.chunks:
            return out
        count = len(call.chunks)
        if len(acting.numbers) == count:
            return out + self._attend(call, call.q, acting)
        image = self._attend(call, pick(call.q, acting.numbers, count), acting)
        return add(out, count, (acting.numbers, image))

    def _acting(self, call: Call) -> Acting:
        """Returns the chunks on which the image acts in an attention, found once for all attentions of a call."""

        def find() -> Acting:
            chunks = self.acting(call, call.site)
            return Acting(chunks, [acts.chunk.index for acts in chunks], tuple(acts.role for acts in chunks))

        # The chunks of a call of the network are one tuple, unless another pack changes them for a layer.
        return call.run.once_at(call.chunks, (self, self.sites[call.site].layer.swapped), find)

    def _attend(self, call: Call, q: Tensor, acting: Acting) -> Tensor:
        """Returns the image's term (chunks * b, tokens, c), masked, for queries q of the same shape."""
        count, (rows, tokens, width) = len(acting.chunks), q.shape
        if self.per_frame:
            out = attention_pytorch(q, *self._per_row(call, acting.chunks), call.heads)
        else:
            # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
            k, v = self._per_chunk(call, acting)
            in_heads = q.reshape(count, rows // count * tokens, call.heads, width // call.heads).transpose(1, 2)
            bias = None if self.copies is None else self.bias(call.run, k.shape[2], k)
            out = attention_pytorch(in_heads, k, v, call.heads, mask=bias, skip_reshape=True)
            out = out.reshape(rows, tokens, width)  # from chunks, b * tokens, c
        if self.mask is None:
            return out
        masks = self.masks(call, [acts.chunk for acts in acting.chunks], call.grid(call.q), call.q)
        return (out.reshape(count, rows // count, tokens, width) * masks).reshape(rows, tokens, width)

    def _per_chunk(self, call: Call, acting: Acting) -> tuple[Tensor, Tensor]:
        """Returns k and v (chunks, heads, images * tokens, d), with the weight inside. They are kept in heads."""

        def stack() -> tuple[Tensor, Tensor]:
            pairs = [self._project(call, role) for role in acting.roles]
            return tuple(
                torch.stack([rearrange(part, "images n (h d) -> (images n) h d", h=call.heads) for part in parts])
                .transpose(1, 2)
                for parts in zip(*pairs, strict=True)
            )  # fmt: skip

        return call.run.once((self, call.site, acting.roles, call.heads, call.q.dtype, call.q.device), stack)

    def _per_row(self, call: Call, acting: Sequence[ActingChunk]) -> tuple[Tensor, Tensor]:
        """Returns k and v (chunks * b, tokens, c): those of image i for row i, and the last ones for further rows."""
        parts = []
        for role, chunk in acting:
            pair = self._project(call, role)
            rows = self.rows(call.run, chunk.images, len(pair[0]), call.q.device)
            parts.append([part.index_select(0, rows) for part in pair])
        k, v = (torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))
        own = self.weights_of_frames(call.run, acting, v)
        return weight_keys_and_values(k, v, self.sites[call.site].layer.weight * own, self.scaling)

    def _project(self, call: Call, role: TokenRole) -> tuple[Tensor, Tensor]:
        """Returns k and v (images, tokens, c) in the type and on the device of q, made once per run.

        Those of frames get their weights later.
        """
        like, site_weight = call.q, self.sites[call.site]

        def project() -> tuple[Tensor, Tensor]:
            tokens = self.tokens(role).to(like.device, torch.float32)
            k, v = self.adapter.layers.model.keys_and_values(site_weight.number, tokens)
            if not self.per_frame:
                k, v = weight_keys_and_values(k, v, site_weight.layer.weight, self.scaling)
            return k.to(like.dtype), v.to(like.dtype)

        return call.run.once((self, call.site, role, like.dtype, like.device), project)


def add_image_prompt(model: ModelPatcher, prompt: UNetImagePrompt, span: Span) -> ModelPatcher:
    """Returns a clone of `model` that is prompted with images too."""
    return add_attention_layer(model, prompt.sites, Named("IP-Adapter", prompt, is_traceable=True), span)
