"""IP-Adapter (2308.06721): image tokens as a second text, with a separate attention in every layer of a UNet.

    out = Attention(q, k_text, v_text) + weight * Attention(q, tokens W_k, tokens W_v)        (equation 5)

The weight is inside v, and for some kinds of scaling inside k (models/ip_adapter/weights.py).

The second term's k and v do not change during a run, so they are made once and kept on the run's device. The host
casts the adapter's weights to the device one matrix at a time, and they do not stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class UNetImagePrompt(ImagePrompt):
    """The layer on the text attentions of a UNet."""

    def __call__(self, call: Call, below: Attend) -> Tensor:
        """Returns the attention (b, tokens, c) with the image's term on the rows that it is for."""
        out = below(call)
        acting = self.acting(call, call.site)
        if not acting:
            return out
        numbers = [acts.chunk.index for acts in acting]
        count, q = len(call.chunks), call.q
        image = self._attend(call, q if len(acting) == count else pick(q, numbers, count), acting)
        return add(out, count, (numbers, image))

    def _attend(self, call: Call, q: Tensor, acting: Sequence[ActingChunk]) -> Tensor:
        """Returns the image's term (chunks * b, tokens, c), masked, for queries q of the same shape."""
        count, tokens = len(acting), q.shape[1]
        if self.per_frame:
            out = attention_pytorch(q, *self._per_row(call, acting), call.heads)
        else:
            # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
            k, v = self._per_chunk(call, acting)
            q = rearrange(q, "(chunks b) n c -> chunks (b n) c", chunks=count)
            out = attention_pytorch(q, k, v, call.heads, mask=self.bias(call.run, k.shape[1], k))
            out = rearrange(out, "chunks (b n) c -> (chunks b) n c", n=tokens)
        if self.mask is None:
            return out
        masks = self.masks(call, [acts.chunk for acts in acting], call.grid(call.q), call.q)
        masked = rearrange(out, "(chunks b) n c -> chunks b n c", chunks=count) * masks
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
