"""Normalized Attention Guidance (2505.21179): a negative prompt inside the text attention, also without CFG.

The network's own matrices make the negative's keys and values in its call, so that LoRA counts, and they are kept for
the run. Layers below (sparse attention, another pack's) act on both texts. Layers that add to the attention
(IP-Adapter) lie above, and the guidance does not push away from what they add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.entries import Signs, append, next_order
from ...engine.layers.attention import Attend, Call, only_on
from ...engine.layers.texts import OwnTexts
from ...engine.network import Named, add_attention_layer
from ...engine.rows.chunk import Chunk
from ...engine.rows.images import clamped
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.sites import Site
from ...engine.span import WHOLE_RUN, Span
from ...engine.unet import find_transformers, unet_of
from ...models.guidance.normalized_attention import normalized_guidance
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import checked_mask, finite_tensor, hides_all, shape_text

DEPTH = 1  # above layers that change how the text attention attends, below those that add to it


class NormalizedAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_NormalizedAttentionGuidance",
            display_name="Normalized Attention Guidance (NAG)",
            category="reins/guidance",
            description="A negative prompt that works without CFG, as few-step models need it: pushes away from it "
            "inside the text attention (NAG). No further evaluation.",
            search_aliases=["NAG", "negative prompt", "normalized attention", "turbo", "lightning"],
            inputs=[
                model_input(),
                io.Conditioning.Input("negative", tooltip="What should not be in the picture. All entries count."),
                make_input(
                    io.Float, "scale", default=2.0, min=0.0, max=100.0, step=0.01,
                    tooltip="How far the attention is pushed away from the negative. 0 turns the node off.",
                ),
                make_input(
                    io.Float, "tau", default=2.5, min=1.0, max=100.0, step=0.01,
                    tooltip="The longest that the attention may get, in multiples of its length without the push.",
                ),
                make_input(
                    io.Float, "alpha", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How much of the pushed attention is mixed in. 0 turns the node off.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, negative: list, scale: float, tau: float, alpha: float, start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:  # fmt: skip
        blocks = find_transformers(unet_of(model))
        if not blocks:
            raise ValueError(
                "Normalized Attention Guidance needs text attention, but this model has none. Remove the node."
            )
        texts = [_negative_text(*entry, blocks[0].context) for entry in _checked_negative(negative)]
        if scale == 0 or alpha == 0:
            return io.NodeOutput(model)
        texts = [text for text in texts if not hides_all(text.mask, "The mask of negative", "A text of NAG's negative")]
        if not texts:
            return io.NodeOutput(model)
        paths = {block.site("attn2"): f"{block.path}.attn2" for block in blocks}
        guidance = NormalizedAttention(texts, paths, scale, tau, alpha)
        return io.NodeOutput(add_normalized_attention(model, guidance, Span(start_percent, end_percent)))


@dataclass(frozen=True, eq=False)
class NegativeText:
    """One entry of a negative prompt: text (1 or n, tokens, c), and its weight, place and time.

    `area` holds height, width, top and left, in cells or as shares of the picture.
    """

    text: Tensor
    strength: float = 1.0
    mask: Tensor | None = None  # (m, height, width)
    area: tuple[float, float, float, float] | None = None
    is_share: bool = False
    span: Span = WHOLE_RUN

    @property
    def is_everywhere(self) -> bool:
        return self.mask is None and self.area is None

    def weights(self, grid: tuple[int, int], chunks: Sequence[Chunk], size: tuple[int, int]) -> Tensor:
        """Returns the weight of the text (chunks, 1 or b, tokens, 1) on a grid, in a latent of `size` cells."""
        shown = torch.ones(1, *size) if self.mask is None else self.mask.float()
        if self.area is not None:
            shown = shown * self._inside(shown.shape[-2:], size)
        return mask_on_grid(shown * self.strength, grid, chunks)

    def _inside(self, shape: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Returns a mask of a shape, 1 in the area and 0 elsewhere, for a latent of `size` cells."""
        h, w, top, left = self.area
        units = (shape[0], shape[1]) if self.is_share else (shape[0] / size[0], shape[1] / size[1])
        inside = torch.zeros(*shape)
        rows = slice(round(top * units[0]), round((top + h) * units[0]))
        columns = slice(round(left * units[1]), round((left + w) * units[1]))
        inside[rows, columns] = 1
        return inside


@dataclass(frozen=True, eq=False)
class NormalizedAttention:
    """The layer on the attentions at `paths`, which acts on the chunks of the positive."""

    texts: Sequence[NegativeText]
    paths: Mapping[Site, str]
    scale: float
    tau: float
    alpha: float
    signs: Signs = field(default_factory=Signs)

    def __call__(self, call: Call, below: Attend) -> Tensor:
        texts = self._active(call)
        if not texts:
            return below(call)
        return only_on(is_positive, lambda call, below: self._guided(call, below, texts))(call, below)

    def _active(self, call: Call) -> list[NegativeText]:
        if all(text.span == WHOLE_RUN for text in self.texts):
            return list(self.texts)
        return [text for text in self.texts if text.span.contains(call.sigma, call.run, call.to_sigma)]

    def _guided(self, call: Call, below: Attend, texts: Sequence[NegativeText]) -> Tensor:
        positive = below(call)
        negative = self._negative(call, below, texts, positive)
        # All attentions in the first call of a run, and one of them in later calls, for a prompt may change.
        if self.signs.compared < len(self.paths) or call.site == next(iter(self.paths)):
            self.signs.compare(negative, positive)
        return normalized_guidance(positive, negative, self.scale, self.tau, self.alpha)

    def _negative(self, call: Call, below: Attend, texts: Sequence[NegativeText], positive: Tensor) -> Tensor:
        """Returns the weighted mean of all texts (rows, tokens, c), or the positive in places where no text counts."""
        outs = []
        for text in texts:
            k, v = self._keys(call, text)
            chunks = tuple(chunk._replace(tokens=k.shape[1]) for chunk in call.chunks)
            outs.append(below(replace(call, k=k, v=v, chunks=chunks)))
        if len(outs) == 1 and texts[0].is_everywhere:
            return outs[0]
        weights = [self._weights(call, text) for text in texts]
        total = sum(weights)
        mean = sum(weight * out for weight, out in zip(weights, outs, strict=True)) / total.clamp_min(1e-6)
        return torch.where(total > 1e-6, mean, positive)

    def _keys(self, call: Call, text: NegativeText) -> tuple[Tensor, Tensor]:
        """Returns k and v (rows, tokens, c) of a text."""
        run, like = call.run, call.k

        def project() -> tuple[Tensor, Tensor]:
            attention, own = call.module(self.paths[call.site]), text.text.to(like)
            context, value = (own, own) if call.texts is None else call.texts.at(call.site, text.text)
            return attention.to_k(context), attention.to_v(value)

        key = (self, text, call.site, like.dtype, like.device)
        changes = run.is_hooked or call.texts is not None  # other packs may change texts anew in each step
        k, v = project() if changes else run.once(key, project)
        rows = [row for chunk in call.chunks for row in clamped(chunk.images, len(k))]
        return (k[rows], v[rows]) if len(k) > 1 else (k.expand(len(rows), -1, -1), v.expand(len(rows), -1, -1))

    def _weights(self, call: Call, text: NegativeText) -> Tensor:
        """Returns the weight of a text (rows, tokens, 1)."""
        if text.is_everywhere:
            return call.q.new_full((1, 1, 1), text.strength)
        call.check_whole(call.chunks, "mask", "the negative of Normalized Attention Guidance")
        size = next((chunk.info.size for chunk in call.chunks if chunk.info is not None), call.size)
        grid, per_chunk = call.grid(call.q), len(call.q) // len(call.chunks)

        def make() -> Tensor:
            weights = text.weights(grid, call.chunks, size)
            return weights.expand(-1, per_chunk, -1, -1).flatten(0, 1).to(call.q)

        return call.run.once((self, text, "weights", grid, size, shown_by(call.chunks), call.q.dtype), make)


def is_positive(chunk: Chunk) -> bool:
    """Returns whether a chunk is not for a negative prompt."""
    return not chunk.is_negative


def add_normalized_attention(model: ModelPatcher, guidance: NormalizedAttention, span: Span) -> ModelPatcher:
    """Returns a clone of `model` that is guided away from these texts in its text attention."""
    model = add_attention_layer(model, guidance.paths, Named("NAG", guidance, guidance.signs), span, depth=DEPTH)
    texts = tuple(text.text for text in guidance.texts)
    append(model, OwnTexts(order=next_order(model), sites=frozenset(guidance.paths), texts=texts, span=span))
    return model


def _checked_negative(negative: Any) -> list:
    if not isinstance(negative, list) or not negative:
        raise ValueError("negative should be a prompt, but holds none. Connect a CLIP Text Encode.")
    return negative


def _negative_text(text: Any, settings: dict[str, Any], width: int) -> NegativeText:
    if not isinstance(text, Tensor) or text.ndim != 3 or text.shape[-1] != width or 0 in text.shape:
        raise ValueError(
            f"negative should be a text of {width} numbers per token, as the model reads it, but is "
            f"{shape_text(text)}. Encode it with the CLIP of this model."
        )
    area = settings.get("area")
    is_share = area is not None and area[0] == "percentage"
    mask = checked_mask(settings.get("mask"), "The mask of negative")
    return NegativeText(
        text=finite_tensor(text, "negative", "finite numbers"),
        strength=settings.get("strength", 1.0) * (settings.get("mask_strength", 1.0) if mask is not None else 1.0),
        mask=mask,
        area=None if area is None else tuple(area[1:] if is_share else area),
        is_share=is_share,
        span=Span(settings.get("start_percent", 0.0), settings.get("end_percent", 1.0)),
    )
