"""Normalized Attention Guidance (2505.21179): a negative prompt inside the text attention, also without CFG.

The network's own matrices make the negative's keys and values in its call, so that LoRA counts, and they are kept for
the run. Layers below (sparse attention, another pack's) act on both texts. Layers that add to the attention
(IP-Adapter) lie above, and the guidance does not push away from what they add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.dit.call import DiTCall
from ...engine.dit.families import Family, unwrapped
from ...engine.dit.own_texts import TextsOfMethod, keys_and_values, text_width
from ...engine.dit.text_rows import readers_of
from ...engine.entries import Signs, append, next_order
from ...engine.find import all_sites, dit_family
from ...engine.layers.attention import Attend, Call
from ...engine.layers.of_host import host_attention, is_fresh, is_of_host
from ...engine.layers.texts import OwnTexts
from ...engine.network import Named, add_attention_layer
from ...engine.rows.chunk import follow_each_other, pick, put
from ...engine.rows.images import clamped, rows_for
from ...engine.sites import Block, Site
from ...engine.span import WHOLE_RUN, Span
from ...engine.unet import find_transformers, unet_of
from ...models.guidance.normalized_attention import normalized_guidance
from ..inputs.negative_text import NegativeText, is_single, mean_of_texts, negative_texts
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import hides_all

NAME = "Normalized Attention Guidance"
DEPTH = 1  # above layers that change how the text attention attends, below those that add to it
OUTERMOST = -1  # in joint attention above all other layers, for they act on the rows of the negative too
BEFORE_TEXT: tuple[Block, ...] = ("noise",)  # blocks of Lumina2 that see the picture alone


class NormalizedAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_NormalizedAttentionGuidance",
            display_name="NAG – Normalized Attention Guidance",
            category="reins/guidance",
            description="A negative prompt that works without CFG, as few-step models need it: pushes away from it "
            "inside the text attention (NAG). No further evaluation.",
            search_aliases=["NAG", "negative prompt", "normalized attention guidance", "turbo", "lightning"],
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
        sites = all_sites(model, "attn2")
        family = dit_family(model)
        blocks = find_transformers(unet_of(model)) if family is None else []
        if family is None and not blocks:
            raise ValueError(
                "Normalized Attention Guidance needs text attention, but this model has none. Remove the node."
            )
        width = blocks[0].context if blocks else text_width(model.get_model_object("diffusion_model"), family)
        texts = negative_texts(negative, width)
        if family is not None:
            _check_readable(texts, family, model)
        if scale == 0 or alpha == 0:
            return io.NodeOutput(model)
        texts = [text for text in texts if not hides_all(text.mask, "The mask of negative", "A text of NAG's negative")]
        if not texts:
            return io.NodeOutput(model)
        settings, span = Settings(texts, scale, tau, alpha), Span(start_percent, end_percent)
        if family is not None:
            return io.NodeOutput(add_to_transformer(model, settings, family, sites, span))
        paths = {block.site("attn2"): f"{block.path}.attn2" for block in blocks}
        return io.NodeOutput(add_normalized_attention(model, NormalizedAttention(settings, paths), span))


@dataclass(frozen=True, eq=False)
class Settings:
    """The inputs of the node."""

    texts: Sequence[NegativeText]
    scale: float
    tau: float
    alpha: float
    signs: Signs = field(default_factory=Signs)

    def guided(self, positive: Tensor, negative: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns the output (b, tokens, c) for the positive, pushed away from that for the negative.

        It is written into `out` (b, tokens, c), if given. `out` may be `positive`.
        """
        return normalized_guidance(positive, negative, self.scale, self.tau, self.alpha, out)

    def active(self, call: Call | DiTCall) -> list[NegativeText]:
        """Returns the texts that count at this noise level."""
        if all(text.span == WHOLE_RUN for text in self.texts):
            return list(self.texts)
        return [text for text in self.texts if text.span.contains(call.sigma, call.run, call.to_sigma)]


@dataclass(frozen=True, eq=False)
class NormalizedAttention:
    """The layer on the attentions at `paths` of a UNet, which acts on the chunks of the positive."""

    settings: Settings
    paths: Mapping[Site, str]

    @property
    def signs(self) -> Signs:
        return self.settings.signs

    def __call__(self, call: Call, below: Attend) -> Tensor:
        out, texts = below(call), self.settings.active(call)
        acting = [chunk.index for chunk in call.chunks if not chunk.is_negative]
        if not texts or not acting:
            return out
        positive = pick(out, acting, len(call.chunks))
        negatives = [self._attend(call, acting, below, text) for text in texts]
        negative = negatives[0] if is_single(texts) else mean_of_texts(call.only(acting), texts, negatives, positive)
        # All attentions in the first call of a run, and one of them in later calls, for a prompt may change.
        # torch.compile would make another graph for each number of comparisons.
        if not call.is_traced and (self.signs.compared < len(self.paths) or call.site == next(iter(self.paths))):
            self.signs.compare(negative, positive)
        if is_fresh(below, call) and follow_each_other(acting):
            self.settings.guided(positive, negative, out=positive)
            return out
        return put(out, acting, len(call.chunks), self.settings.guided(positive, negative))

    def _attend(self, call: Call, acting: Sequence[int], below: Attend, text: NegativeText) -> Tensor:
        """Returns the attention of some chunks, by number, to a text instead of the positive's."""
        images = [i for number in acting for i in call.chunks[number].images]
        k, v = self._keys(call, text, images)
        if is_of_host(below, call):  # the host needs no call that describes these rows
            return host_attention(pick(call.q, acting, len(call.chunks)), k, v, call.options)
        return below(call.with_keys(acting, k, v))

    def _keys(self, call: Call, text: NegativeText, images: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns k and v (images, tokens, c) of a text."""
        run, like = call.run, call.k

        def project() -> tuple[Tensor, Tensor]:
            attention, own = call.module(self.paths[call.site]), text.text.to(like)
            context, value = (own, own) if call.texts is None else call.texts.at(call.site, text.text)
            return attention.to_k(context), attention.to_v(value)

        key = (self, text, call.site, like.dtype, like.device)
        changes = run.is_hooked or call.texts is not None  # other packs may change texts anew in each step
        return rows_for(images, *(project() if changes else run.once(key, project)))


@dataclass(frozen=True, eq=False)
class CrossAttentionGuidance(NormalizedAttention):
    """The same on the text attentions of a transformer. The paths are not read."""

    family: Family

    def _attend(self, call: DiTCall, acting: Sequence[int], below: Attend, text: NegativeText) -> Tensor:
        call = call.only(acting)
        run, like = call.run, call.k

        def project() -> tuple[Tensor, Tensor, Tensor | None]:
            return keys_and_values(call, self.family, text.own)

        key = (self, text, call.site, like.dtype, like.device)
        k, v, mask = project() if run.is_hooked else run.once(key, project)
        images = [i for chunk in call.chunks for i in chunk.images]
        if mask is not None and len(mask) > 1:
            mask = mask[clamped(images, len(mask))]
        return below(call.of_keys(*rows_for(images, k, v), mask))


@dataclass(frozen=True, eq=False)
class JointAttentionGuidance:
    """The layer on the attentions of a transformer that are over text and picture at once.

    The negative has rows in the call, and what is beside the text is the same in them as in the rows of the positive.
    """

    settings: Settings
    owner: UUID
    sites: Sequence[Site]

    def __call__(self, call: DiTCall, below: Attend) -> Tensor:
        """Returns the attention (rows, tokens, c), with one guided picture in a positive and the rows beside it."""
        out = below(call)
        all_readers = readers_of(call, self.owner)
        if not all_readers:
            return out
        by_id = {text.own.id: text for text in self.settings.texts}
        parts, place = list(call.split(out)), call.beside_text
        for readers in all_readers:
            own = [number for number, _ in readers.own]
            texts = [by_id[text.id] for _, text in readers.own]
            positive = parts[readers.positive][:, place]
            alone = call.only([readers.positive])
            negative = mean_of_texts(alone, texts, [parts[number][:, place] for number in own], positive)
            if self.settings.signs.compared < len(self.sites) or call.site == self.sites[0]:
                self.settings.signs.compare(negative, positive)
            made = {number: self.settings.guided(parts[number][:, place], negative) for number in readers.others}
            guided = self.settings.guided(positive, negative)
            for number in (readers.positive, *own, *readers.others):
                parts[number] = parts[number].clone()
                parts[number][:, place] = made.get(number, guided)
        return torch.cat(parts)


def add_normalized_attention(model: ModelPatcher, guidance: NormalizedAttention, span: Span) -> ModelPatcher:
    """Returns a clone of `model`, which has a UNet, that is guided away from these texts in its text attention."""
    is_constant = all(text.span == WHOLE_RUN for text in guidance.settings.texts)
    layer = Named("NAG", guidance, guidance.signs, is_traceable=is_constant)
    model = add_attention_layer(model, guidance.paths, layer, span, depth=DEPTH)
    texts = tuple(text.text for text in guidance.settings.texts)
    append(model, OwnTexts(order=next_order(model), sites=frozenset(guidance.paths), texts=texts, span=span))
    return model


def add_to_transformer(
    model: ModelPatcher, settings: Settings, family: Family, sites: Sequence[Site], span: Span
) -> ModelPatcher:  # fmt: skip
    """Returns a clone of `model`, which has a transformer, that is guided away from these texts.

    `sites` are its text attentions. If it has none, its attentions over text and picture are guided.
    """
    texts = TextsOfMethod(
        texts=tuple(text.own for text in settings.texts), method=NAME, in_rows=not sites, span=span
    )  # fmt: skip
    if sites:
        layer: Any = CrossAttentionGuidance(settings, dict.fromkeys(sites, ""), family)
        depth = DEPTH
    else:
        joint = all_sites(model, "attn1")
        sites = [site for site in joint if site.index == 0 and site.block not in BEFORE_TEXT]
        layer, depth = JointAttentionGuidance(settings, texts.id, sites), OUTERMOST
    model = add_attention_layer(model, sites, Named("NAG", layer, settings.signs), span, depth=depth)
    append(model, replace(texts, order=next_order(model)))
    return model


def _check_readable(texts: Sequence[NegativeText], family: Family, model: ModelPatcher) -> None:
    """Raises ValueError if a transformer of the family cannot read these texts beside the positive."""
    for text in texts:
        settings = text.own.conditioning[1]
        if family.name == "HiDream" and settings.get("conditioning_llama3") is None:
            raise ValueError(
                "negative should have the tokens of HiDream's Llama, but has none. Encode it with the CLIP of this "
                "model (QuadrupleCLIPLoader)."
            )
        if family.cross is None and settings.get("conditioning_byt5small") is not None:
            raise ValueError(
                f"negative should have no words in quotes, which a second text encoder reads (ByT5), for it is read "
                f"beside the positive in {family.name}. Take the quotes away."
            )
    blocks = getattr(unwrapped(model.get_model_object("diffusion_model")), family.stacks[0].attribute)
    if family.cross == "ltxv" and any(getattr(block, "cross_attention_adaln", False) for block in blocks):
        raise ValueError(
            "Normalized Attention Guidance makes keys of the negative once in a run, but this LTX model changes its "
            "text in each step (LTX-2.3). Remove the node."
        )
