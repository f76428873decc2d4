"""IP-Adapter (2308.06721): image tokens as a second text, with an attention of their own in every layer.

    out = Attention(q, k_text, v_text) + weight * Attention(q, tokens W_k, tokens W_v)        (equation 5)

Nothing of the second term's k and v changes during a run, so they are made once and kept on the run's device; the
adapter's weights visit the device one matrix at a time, as the host casts them, and do not stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ..models.ip_adapter_files import Kind
from ..models.ip_adapter_weights import LayerWeight, Scaling, scale
from .attention import Attend, Call, add_attention_layer
from .chunk_conds import ChunkInfo, info_of, install_chunk_infos
from .frames import images_of
from .row_masks import on_grid
from .run import RUN, Run
from .sites import Site
from .span import Span

Role = Literal["cond", "uncond"]
NEGATIVE = 1  # the host's number for the negative's chunks; every other one counts as positive


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
        infos = [info_of(call.options, chunk) for chunk in call.chunks]
        roles = [self._role(label, info, site) for label, info in zip(_labels(call), infos, strict=True)]
        acting = [i for i, role in enumerate(roles) if role]
        if not acting:
            return out
        image = self._attend(call.only(acting), site, [roles[i] for i in acting], [infos[i] for i in acting])
        if len(acting) == len(roles):
            return out + image
        parts = list(call.split(out))
        for i, part in zip(acting, image.chunk(len(acting)), strict=True):
            parts[i] = parts[i] + part
        return torch.cat(parts)

    def _role(self, label: int, info: ChunkInfo | None, site: Site) -> Role | None:
        if self.only_for and (info is None or self.only_for not in info.names):
            return None
        if self.sites[site].layer.swapped:  # the positive's zeros have no keys and no values: nothing
            return "cond" if label == NEGATIVE else None
        return "uncond" if label == NEGATIVE else "cond"

    def _attend(
        self, call: Call, site: Site, roles: Sequence[Role], infos: Sequence[ChunkInfo | None]
    ) -> Tensor:  # fmt: skip
        """(chunks * b, tokens, c): the image's term, masked."""
        run: Run = call.options.get(RUN) or Run()
        chunks, rows = len(roles), len(call.q) // len(roles)
        images = images_of(call.options, rows)
        heads = call.options["n_heads"]
        if self.per_frame:
            k, v = self._per_row(run, call, site, roles, images)
            out = attention_pytorch(call.q, k, v, heads)
        else:
            # Rows of a chunk share k and v, so their queries stand in one row, and k and v are never repeated.
            q = rearrange(call.q, "(chunks b) n c -> chunks (b n) c", chunks=chunks)
            k, v = self._per_chunk(run, call, site, roles)
            out = attention_pytorch(q, k, v, heads, mask=self._bias(run, k))
            out = rearrange(out, "chunks (b n) c -> (chunks b) n c", b=rows)
        if self.mask is None:
            return out
        mask = self._mask_rows(run, call, infos, images)
        return rearrange(rearrange(out, "(chunks b) n c -> chunks b n c", chunks=chunks) * mask,
                         "chunks b n c -> (chunks b) n c")  # fmt: skip

    def _per_chunk(
        self, run: Run, call: Call, site: Site, roles: Sequence[Role]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """k and v (chunks, images * tokens, c)."""

        def stack() -> tuple[Tensor, Tensor]:
            pairs = [self._project(run, call.q, site, role) for role in roles]
            return tuple(
                torch.stack([rearrange(part, "images n c -> (images n) c") for part in parts])
                for parts in zip(*pairs, strict=True)
            )

        return run.once((self, site, tuple(roles), call.q.dtype, call.q.device), stack)

    def _per_row(
        self, run: Run, call: Call, site: Site, roles: Sequence[Role], images: Sequence[int]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """k and v (chunks * b, tokens, c): image i for row i, the last one for those beyond."""
        pairs = []
        for role in roles:
            pair = self._project(run, call.q, site, role)
            pairs.append([part[_clamped(images, len(part))] for part in pair])
        k, v = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weights = self.weights[_clamped(images, len(self.weights))].repeat(len(roles)).to(v)
        return k, v * weights[:, None, None]

    def _project(self, run: Run, q: Tensor, site: Site, role: Role) -> tuple[Tensor, Tensor]:
        """k and v (images, tokens, c) with the weight inside, in the type and on the device of q; once per run."""

        def project() -> tuple[Tensor, Tensor]:
            tokens = (self.cond if role == "cond" else self.uncond).to(q.device, torch.float32)
            plan = self.sites[site]
            k, v = self.adapter.layers.model.keys_and_values(plan.number, tokens)
            return tuple(part.to(q.dtype) for part in scale(k, v, plan.layer.weight, self.scaling))

        return run.once((self, site, role, q.dtype, q.device), project)

    def _bias(self, run: Run, k: Tensor) -> Tensor | None:
        """(1, 1, images * tokens) for the logits; None where all images weigh the same."""
        if self.copies is None:
            return None
        per_image = k.shape[1] // len(self.copies)
        key = (self, "bias", k.dtype, k.device)
        return run.once(key, lambda: self.copies.repeat_interleave(per_image)[None, None].to(k))

    def _mask_rows(
        self, run: Run, call: Call, infos: Sequence[ChunkInfo | None], images: Sequence[int]
    ) -> Tensor:  # fmt: skip
        seen = tuple(call.options["original_shape"][-2:])
        if any(info is not None and info.seen != seen for info in infos):
            raise RuntimeError(
                f"The mask of an IP-Adapter belongs to the whole picture, but another node shows the model a part of "
                f"{seen[0]}x{seen[1]} cells (tiled diffusion). Remove that node or the mask."
            )
        grid = call.grid(call.q)
        key = (self, "mask", grid, tuple(infos), tuple(images), call.q.dtype, call.q.device)
        return run.once(key, lambda: on_grid(self.mask, grid, infos, images).to(call.q))


def add_image_prompt(model: ModelPatcher, prompt: ImagePrompt, span: Span) -> ModelPatcher:
    """A clone of `model` that is prompted with images too."""
    model = add_attention_layer(model, prompt.sites, prompt, span)
    install_chunk_infos(model)
    return model


def _clamped(images: Sequence[int], count: int) -> list[int]:
    return [min(i, count - 1) for i in images]


def _labels(call: Call) -> Sequence[int]:
    """The host's number of each chunk's conditioning; code without one has positives alone."""
    labels: Any = call.options.get("cond_or_uncond")
    return labels if labels else [0] * len(call.chunks)
