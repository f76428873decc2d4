"""IP-Adapter (2308.06721): image tokens as a second text, with an attention of their own in every layer.

    out = Attention(q, k_text, v_text) + weight * Attention(q, tokens W_k, tokens W_v)        (equation 5)

Nothing of the second term's k and v changes during a run, so they are made once and kept on the run's device; the
adapter's weights visit the device one matrix at a time, as the host casts them, and do not stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...engine.layers.attention import Attend, Call
from ...engine.network import add_attention_layer
from ...engine.rows.conds import CONDS, IMAGES, ChunkInfo, check_whole, info_of, install_chunk_infos, is_negative
from ...engine.rows.images import clamped, images_of
from ...engine.rows.masks import on_grid
from ...engine.run import Run, run_in
from ...engine.span import Span
from ...engine.unet import Site
from ...models.ip_adapter.files import Kind
from ...models.ip_adapter.weights import LayerWeight, Scaling, weight_keys_and_values

Role = Literal["cond", "uncond"]
# Where packs for regional prompts (attention couple) tell the numbers of the chunks that they make of the host's.
COUPLED = ("cond_or_uncond_couple", "swarm_cond_or_uncond_couple")


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """A file as the host's patchers; `lora` is by number of the attention, `clip_vision` came along with it.

    `fingerprint` tells its projection from others, whatever the file is called.
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
    """cond (images, tokens, context), uncond (1, tokens, context); `black` is the uncond of the widely used pack.

    `weights` (images,) are those of a concat, or of each frame. The last two say which file made them.
    """

    cond: Tensor
    uncond: Tensor
    black: Tensor
    weights: Tensor
    made_by: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class SiteWeight:
    """What a layer does: which matrices of the file, how strongly, and to which chunks."""

    number: int  # of the text attention in the file
    layer: LayerWeight


class ActingChunk(NamedTuple):
    """A chunk that the image speaks to; `images` are those of its rows in the batch."""

    role: Role
    info: ChunkInfo | None
    images: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Settings of one adapter on one model, and the layer that acts on its attentions."""

    adapter: IPAdapter
    cond: Tensor  # (images, tokens, context)
    uncond: Tensor  # as many where the images of cond are one prompt together
    weights: Tensor  # (images,), of frames
    copies: Tensor | None  # (images,) for the logits of images that are one prompt together, where they differ
    sites: Mapping[Site, SiteWeight]
    scaling: Scaling
    mask: Tensor | None  # (m, height, width)
    per_frame: bool
    only_for: str

    def __call__(self, call: Call, below: Attend) -> Tensor:
        """The layer: what lies below, and the image's attention on the rows that it is for."""
        out = below(call)
        site = Site("attn2", *call.options["block"], call.options["block_index"])
        seen = _with_true_chunks(call)
        infos = self._infos(seen)
        roles = [self._role(seen.options, label, info, site) for label, info in zip(_labels(seen), infos, strict=True)]
        acting = [i for i, role in enumerate(roles) if role]
        if not acting:
            return out
        rows = len(seen.q) // len(roles)
        chunks = [ActingChunk(roles[i], infos[i], tuple(images_of(seen.options, i, rows))) for i in acting]
        image = self._attend(seen.only(acting), site, chunks)
        if len(acting) == len(roles):
            return out + image
        parts = list(seen.split(out))
        for i, part in zip(acting, image.chunk(len(acting)), strict=True):
            parts[i] = parts[i] + part
        return torch.cat(parts)

    def _infos(self, call: Call) -> list[ChunkInfo | None]:
        """What is known of each chunk. RuntimeError where a sampler runs and what must be known is not."""
        options = call.options
        if CONDS not in options and "sample_sigmas" in options and (self.only_for or self.mask is not None):
            raise RuntimeError(
                "An IP-Adapter that a hook brings cannot know the areas and names of prompts. Put IP-Adapter Apply on "
                "the model itself, or leave mask and only_for empty."
            )
        return [info_of(options, chunk) for chunk in call.chunks]

    def _role(self, options: Mapping[str, Any], label: int, info: ChunkInfo | None, site: Site) -> Role | None:
        if self.only_for and (info is None or self.only_for not in info.names):
            return None
        negative = is_negative(options, label)
        if self.sites[site].layer.swapped:  # the positive's zeros have no keys and no values: nothing
            return "cond" if negative else None
        return "uncond" if negative else "cond"

    def _attend(self, call: Call, site: Site, chunks: Sequence[ActingChunk]) -> Tensor:
        """(chunks * b, tokens, c): the image's term, masked."""
        run = run_in(call.options)
        count, heads = len(chunks), call.options["n_heads"]
        if self.per_frame:
            out = attention_pytorch(call.q, *self._per_row(run, call, site, chunks), heads)
        else:
            # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
            k, v = self._per_chunk(run, call, site, chunks)
            q = rearrange(call.q, "(chunks b) n c -> chunks (b n) c", chunks=count)
            out = attention_pytorch(q, k, v, heads, mask=self._bias(run, k))
            out = rearrange(out, "chunks (b n) c -> (chunks b) n c", n=call.q.shape[1])
        if self.mask is None:
            return out
        masked = rearrange(out, "(chunks b) n c -> chunks b n c", chunks=count) * self._mask_rows(run, call, chunks)
        return rearrange(masked, "chunks b n c -> (chunks b) n c")

    def _per_chunk(
        self, run: Run, call: Call, site: Site, chunks: Sequence[ActingChunk]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """k and v (chunks, images * tokens, c), with the weight inside."""

        def stack() -> tuple[Tensor, Tensor]:
            pairs = [self._project(run, call.q, site, chunk.role) for chunk in chunks]
            return tuple(
                torch.stack([rearrange(part, "images n c -> (images n) c") for part in parts])
                for parts in zip(*pairs, strict=True)
            )

        return run.once((self, site, tuple(chunk.role for chunk in chunks), call.q.dtype, call.q.device), stack)

    def _per_row(
        self, run: Run, call: Call, site: Site, chunks: Sequence[ActingChunk]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """k and v (chunks * b, tokens, c): image i for row i, the last one for those beyond."""
        parts = []
        for chunk in chunks:
            pair = self._project(run, call.q, site, chunk.role)
            rows = self._rows(run, call.q, chunk.images, len(pair[0]))
            parts.append([part.index_select(0, rows) for part in pair])
        k, v = (torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))
        images = tuple(i for chunk in chunks for i in chunk.images)
        own = run.once(
            (self, "weights", images, v.dtype, v.device),
            lambda: self.weights[clamped(images, len(self.weights))].to(v)[:, None, None],
        )
        return weight_keys_and_values(k, v, self.sites[site].layer.weight * own, self.scaling)

    def _rows(self, run: Run, q: Tensor, images: tuple[int, ...], count: int) -> Tensor:
        key = (self, "rows", images, count, q.device)
        return run.once(key, lambda: torch.tensor(clamped(images, count), device=q.device))

    def _project(self, run: Run, q: Tensor, site: Site, role: Role) -> tuple[Tensor, Tensor]:
        """k and v (images, tokens, c) in the type and on the device of q, once per run; frames are scaled later."""

        def project() -> tuple[Tensor, Tensor]:
            tokens = (self.cond if role == "cond" else self.uncond).to(q.device, torch.float32)
            plan = self.sites[site]
            k, v = self.adapter.layers.model.keys_and_values(plan.number, tokens)
            if not self.per_frame:
                k, v = weight_keys_and_values(k, v, plan.layer.weight, self.scaling)
            return k.to(q.dtype), v.to(q.dtype)

        return run.once((self, site, role, q.dtype, q.device), project)

    def _bias(self, run: Run, k: Tensor) -> Tensor | None:
        """(1, 1, images * tokens) for the logits; None where all images weigh the same."""
        if self.copies is None:
            return None
        per_image = k.shape[1] // len(self.copies)
        key = (self, "bias", k.dtype, k.device)
        return run.once(key, lambda: self.copies.repeat_interleave(per_image)[None, None].to(k))

    def _mask_rows(self, run: Run, call: Call, chunks: Sequence[ActingChunk]) -> Tensor:
        check_whole(call.options, [chunk.info for chunk in chunks], "mask", "an IP-Adapter")
        grid = call.grid(call.q)
        infos = tuple(chunk.info for chunk in chunks)
        images = tuple(chunk.images for chunk in chunks)
        key = (self, "mask", grid, infos, images, call.q.dtype, call.q.device)
        return run.once(key, lambda: on_grid(self.mask, grid, infos, images).to(call.q))


def add_image_prompt(model: ModelPatcher, prompt: ImagePrompt, span: Span) -> ModelPatcher:
    """A clone of `model` that is prompted with images too."""
    model = add_attention_layer(model, prompt.sites, prompt, span)
    install_chunk_infos(model)
    return model


def _labels(call: Call) -> Sequence[int]:
    """The host's number of each chunk's conditioning; code without one has positives alone."""
    labels: Any = call.options.get("cond_or_uncond")
    return labels if labels else [0] * len(call.chunks)


def _with_true_chunks(call: Call) -> Call:
    """The call with the chunks that its rows are, where a pack for regional prompts has put in more of them.

    RuntimeError where a pack has put in rows and does not say what they are.
    """
    if len(call.q) == call.options["activations_shape"][0]:
        return call
    known = (call.options.get(name) for name in COUPLED)
    labels = next((found for found in known if found and len(call.q) % len(found) == 0), None)
    if labels is None:
        raise RuntimeError(
            f"An IP-Adapter found {len(call.q)} rows in a text attention that should have "
            f"{call.options['activations_shape'][0]}: another pack adds rows for regional prompts and does not say "
            f"which. Remove that pack from the model; IP-Adapter for Conditioning does regions too."
        )
    first = dict(reversed(list(zip(_labels(call), call.chunks, strict=True))))
    options = {**call.options, "cond_or_uncond": labels, "uuids": [first.get(label) for label in labels]}
    options.pop(IMAGES, None)
    return replace(call, options=options)
