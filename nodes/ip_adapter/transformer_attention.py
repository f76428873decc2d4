"""IP-Adapters in diffusion transformers: a term beside the attention over text and picture.

InstantX for Stable Diffusion 3.5: the picture attends to itself and to the image at once, with norms of the file, and
the result is added to the attention:

    out = JointAttention + weight * Attention(q', [k', k_image], [v, v_image])

XLabs for Flux: queries before positions attend to the image alone, and the result is added behind the block. InstantX
for Flux: the same is added to the attention, in single blocks for the text too.

The term is the outermost layer: in the perturbed prediction of a guidance it is what it is in the plain one, and NAG
does not push away from it. The host loads an adapter whose tokens change with time together with the model. The
keys and values of the others are made once in a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor, nn

from ...engine.dit.call import DiTCall
from ...engine.layers.attention import Attend
from ...engine.loading import load_with
from ...engine.network import Named, add_attention_layer
from ...engine.rows.chunk import add, joined
from ...engine.span import Span
from ...models.ip_adapter.time_resampler import STEPS, TimedTokens
from ...models.ip_adapter.transformer_layers import normed_again, without_positions
from .prompt import ActingChunk, ImagePrompt, TokenRole
from .transformer_match import path_of_sd3

OUTERMOST = -2  # above NAG, whose rows get the term of their positive


class KeysAndValues(NamedTuple):
    """k and v (images, heads, tokens, d) of the image."""

    k: Tensor
    v: Tensor


class TransformerImagePrompt(ImagePrompt):
    """The layer on the attentions of a transformer over text and picture."""

    def __call__(self, call: DiTCall, below: Attend) -> Tensor:
        """Returns the attention (rows, tokens, c), with the image's term on the rows and tokens that it is for."""
        out = below(call)
        acting = self.acting(call, call.site)
        if not acting:
            return out
        count, numbers = len(call.chunks), [acts.chunk.index for acts in acting]
        tokens = self._tokens(call)
        term = self._term(call.only(numbers), acting, tokens)
        if self.adapter.kind.form == "xlabs":
            rest = [i for i in range(count) if i not in numbers]
            nothing = term.new_zeros(len(rest) * len(call.q) // count, *term.shape[1:])
            call.after.append(joined(count, (numbers, term), (rest, nothing)) if rest else term)
            return out
        before, within, behind = out[:, : tokens.start], out[:, tokens], out[:, tokens.stop :]
        return torch.cat([before, add(within, count, (numbers, term)), behind], 1)

    def _tokens(self, call: DiTCall) -> slice:
        """Returns which tokens the term is for."""
        is_for_text = self.adapter.kind.form == "instantx" and call.site.block == "single"
        return slice(call.text.start, call.picture.stop) if is_for_text else call.picture

    def _term(self, call: DiTCall, acting: Sequence[ActingChunk], tokens: slice) -> Tensor:
        """Returns the image's term (chunks * b, tokens, c), weighted and masked, for a call of the acting chunks."""
        if self.adapter.kind.form == "sd3":
            out = self._beside_picture(call, acting)
        else:
            q = call.q[:, :, tokens]
            if call.positions is not None:
                q = without_positions(q, call.positions[:, :, tokens])
            out = self._alone(call, acting, q)
        weight: Tensor | float = self.sites[call.site].layer.weight
        if self.per_frame:
            weight = weight * self.weights_of_frames(call.run, acting, out)
        out = out * weight
        if self.mask is None:
            return out
        masks = self.masks(call, [acts.chunk for acts in acting], call.grid[1:], out)
        # Text belongs to no place, so it reads nothing of an image for a part of the picture.
        beside = call.picture.start - tokens.start
        masks = nn.functional.pad(masks, (0, 0, beside, 0))
        masked = rearrange(out, "(chunks b) n c -> chunks b n c", chunks=len(acting)) * masks
        return rearrange(masked, "chunks b n c -> (chunks b) n c")

    def _alone(self, call: DiTCall, acting: Sequence[ActingChunk], q: Tensor) -> Tensor:
        """Returns the attention (chunks * b, tokens, c) of queries (chunks * b, heads, tokens, d) to the image."""
        if self.per_frame:
            return attention_pytorch(q, *self._of_rows(call, acting), call.heads, skip_reshape=True)
        # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
        of_roles = self._project(call, acting)
        pairs = [_as_one_prompt(of_roles[acts.role]) for acts in acting]
        k, v = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        shared = rearrange(q, "(chunks b) h n d -> chunks h (b n) d", chunks=len(acting))
        out = attention_pytorch(
            shared, k, v, call.heads, mask=self.bias(call.run, k.shape[2], k), skip_reshape=True
        )  # fmt: skip
        return rearrange(out, "chunks (b n) c -> (chunks b) n c", n=q.shape[2])

    def _beside_picture(self, call: DiTCall, acting: Sequence[ActingChunk]) -> Tensor:
        """Returns the attention (chunks * b, tokens, c) of the picture to itself and to the image."""
        q, k, v = (part[:, :, call.picture] for part in (call.q, call.k, call.v))
        norms, number = self._norms(call), self.sites[call.site].number
        q, k = (
            normed_again(part, was, weight)
            for part, was, weight in zip((q, k), norms, self.adapter.layers.model.norms(number), strict=True)
        )
        image_k, image_v = self._of_rows(call, acting)
        bias = self.bias(call.run, image_k.shape[2], q)
        if bias is not None:
            bias = nn.functional.pad(bias, (k.shape[2], 0))
        k, v = torch.cat([k, image_k], 2), torch.cat([v, image_v], 2)
        return attention_pytorch(q, k, v, call.heads, mask=bias, skip_reshape=True)

    def _of_rows(self, call: DiTCall, acting: Sequence[ActingChunk]) -> KeysAndValues:
        """Returns k and v (chunks * b, heads, tokens, d) of the image for each row."""
        parts, of_roles = [], self._project(call, acting)
        for role, chunk in acting:
            pair = of_roles[role]
            if self.per_frame:
                rows = self.rows(call.run, chunk.images, len(pair.k), call.q.device)
                parts.append([part.index_select(0, rows) for part in pair])
            else:
                parts.append([part.expand(len(chunk.images), -1, -1, -1) for part in _as_one_prompt(pair)])
        k, v = (torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))
        if self.per_frame and self.scaling == "K+V":
            k = k * self.weights_of_frames(call.run, acting, k)[..., None]
        return KeysAndValues(k, v)

    def _project(self, call: DiTCall, acting: Sequence[ActingChunk]) -> Mapping[TokenRole, KeysAndValues]:
        """Returns k and v of the images by role, in the type and on the device of q.

        They are made once in a run, or once in a step if they change with time. The weights, which are gigabytes, are
        read once for all roles of the call.
        """
        like, number = call.q, self.sites[call.site].number
        layers, roles = self.adapter.layers.model, tuple(dict.fromkeys(acts.role for acts in acting))

        def project() -> Mapping[TokenRole, KeysAndValues]:
            if self.adapter.kind.form == "sd3":
                k, v = layers.keys_and_values(number, self._at_this_time(call, roles))
            else:
                k, v = layers.keys_and_values(number, self._tokens_of(call, roles), call.heads)
            if self.scaling == "K+V":
                k = k * self.sites[call.site].layer.weight
            counts = [len(self.cond if role == "cond" else self.uncond) for role in roles]
            parts = zip(k.to(like.dtype).split(counts), v.to(like.dtype).split(counts), strict=True)
            return {role: KeysAndValues(*pair) for role, pair in zip(roles, parts, strict=True)}

        key = (self, call.site, roles, like.dtype, like.device)
        if self.adapter.kind.form == "sd3":
            return call.run.once_at(call.sigmas, key, project)
        return call.run.once(key, project)

    def _tokens_of(self, call: DiTCall, roles: tuple[TokenRole, ...]) -> Tensor:
        """Returns the tokens (images of all roles, tokens, context), copied to the device of q once in a run."""
        device = call.q.device
        return call.run.once(
            (self, "tokens", roles, device),
            lambda: torch.cat([self.tokens(role).to(device, torch.float32) for role in roles]),
        )

    def _at_this_time(self, call: DiTCall, roles: tuple[TokenRole, ...]) -> TimedTokens:
        """Returns the image tokens at the noise level of this call, in the type of q, made once for all layers."""
        like, sigmas = call.q, call.sigmas

        def make() -> TimedTokens:
            time = sigmas[:1].float() * STEPS
            timed = self.adapter.projection.model(self._tokens_of(call, roles), time.to(like.device))
            return TimedTokens(*(part.to(like.dtype) for part in timed))

        return call.run.once_at(sigmas, (self, "at this time", roles, like.dtype, like.device), make)

    def _norms(self, call: DiTCall) -> tuple[Tensor | None, Tensor | None]:
        """Returns the weights (d,) of the norms that q and k of the picture have been through. None: no norm."""

        def read() -> tuple[Tensor | None, Tensor | None]:
            attention = call.module(path_of_sd3(call.site))
            return _weight_of(attention.ln_q, call.q), _weight_of(attention.ln_k, call.q)

        key = (self, "norms", call.site, call.q.dtype, call.q.device)
        return read() if call.run.is_hooked else call.run.once(key, read)


def _as_one_prompt(pair: KeysAndValues) -> KeysAndValues:
    """Returns k and v (1, heads, images * tokens, d) of all images as one prompt."""
    return KeysAndValues(*(rearrange(part, "images h n d -> 1 h (images n) d") for part in pair))


def _weight_of(norm: nn.Module, like: Tensor) -> Tensor | None:
    """Returns the weight (d,) of a norm, by what it makes of ones. None if it norms nothing."""
    return None if isinstance(norm, nn.Identity) else norm(like.new_ones(1, like.shape[-1]))[0]


def add_transformer_image_prompt(model: ModelPatcher, prompt: TransformerImagePrompt, span: Span) -> ModelPatcher:
    """Returns a clone of `model`, which has a transformer, that is prompted with images too."""
    model = add_attention_layer(model, prompt.sites, Named("IP-Adapter", prompt), span, depth=OUTERMOST)
    if prompt.adapter.kind.form == "sd3":
        model = load_with(model, prompt.adapter.projection, prompt.adapter.layers)
    return model
