"""What an IP-Adapter on a model is: the file, the tokens of pictures, and the settings of Apply.

How the image's term is computed depends on the network (attention.py, transformer_attention.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.layers.call import LayerCall
from ...engine.rows.chunk import Chunk
from ...engine.rows.images import clamped
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.run import Run
from ...engine.sites import Site
from ...models.ip_adapter.kinds import Kind
from ...models.ip_adapter.weights import LayerWeight, Scaling

TokenRole = Literal["cond", "uncond"]


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """A file as the host's patchers.

    `lora` is by number of the attention. `clip_vision` is the image encoder that another pack loaded with the file.
    `fingerprint` is the same for files with one projection, whatever their names. `pooling` is the head of SigLIP.
    """

    name: str
    fingerprint: str
    kind: Kind
    projection: ModelPatcher
    layers: ModelPatcher
    sizes: Sequence[tuple[int, int]]
    lora: Mapping[str, Tensor]
    clip_vision: ClipVisionModel | None = None
    pooling: ModelPatcher | None = None


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
    """Settings of one adapter on one model."""

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

    def acting(self, call: LayerCall, site: Site) -> list[ActingChunk]:
        """Returns the chunks on which the image acts in an attention. Raises RuntimeError if that is not known."""
        if (self.only_for or self.mask is not None) and call.lacks_conds:
            raise RuntimeError(
                "An IP-Adapter that a hook brings cannot know the areas and names of prompts. Put IP-Adapter Apply on "
                "the model itself, or leave mask and only_for empty."
            )
        acting = (ActingChunk(self._role(chunk, site), chunk) for chunk in call.chunks)
        return [acts for acts in acting if acts.role is not None]

    def _role(self, chunk: Chunk, site: Site) -> TokenRole | None:
        if self.only_for and (chunk.info is None or self.only_for not in chunk.info.names):
            return None
        if self.sites[site].layer.swapped:
            # The positive would read zeros, whose keys and values are zeros and add nothing.
            return "cond" if chunk.is_negative else None
        return "uncond" if chunk.is_negative else "cond"

    def tokens(self, role: TokenRole) -> Tensor:
        """Returns the tokens (images, tokens, context) that a chunk reads."""
        return self.cond if role == "cond" else self.uncond

    def rows(self, run: Run, images: tuple[int, ...], count: int, device: torch.device) -> Tensor:
        """Returns which of `count` images each row reads, (b,): image i row i, and the last one further rows."""
        key = (self, "rows", images, count, device)
        return run.once(key, lambda: torch.tensor(clamped(images, count), device=device))

    def weights_of_frames(self, run: Run, acting: Sequence[ActingChunk], like: Tensor) -> Tensor:
        """Returns the weight of each row's frame (chunks * b, 1, 1)."""
        images = tuple(i for acts in acting for i in acts.chunk.images)
        return run.once(
            (self, "weights", images, like.dtype, like.device),
            lambda: self.weights[clamped(images, len(self.weights))].to(like)[:, None, None],
        )

    def bias(self, run: Run, tokens: int, like: Tensor) -> Tensor | None:
        """Returns what is added to the logits (1, 1, tokens) of all images. None if all of them weigh the same."""
        if self.copies is None:
            return None
        per_image = tokens // len(self.copies)
        key = (self, "bias", like.dtype, like.device)
        return run.once(key, lambda: self.copies.repeat_interleave(per_image)[None, None].to(like))

    def masks(self, call: LayerCall, chunks: Sequence[Chunk], grid: tuple[int, int], like: Tensor) -> Tensor:
        """Returns the mask (chunks, 1 or b, tokens, 1) on the grid of an attention.

        Raises RuntimeError if the network is shown a part of the picture that no prompt asks for.
        """
        call.check_whole(chunks, "mask", "an IP-Adapter")
        key = (self, "mask", grid, shown_by(chunks), like.dtype, like.device)
        return call.run.once(key, lambda: mask_on_grid(self.mask, grid, chunks).to(like))
