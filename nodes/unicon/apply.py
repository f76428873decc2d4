"""Puts a UniCon on a model: its partner, its layers in the blocks, and guidance by the condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID, uuid4

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.effects import watch
from ...engine.entries import append, entries, next_order
from ...engine.guidance import AttentionTerm, add_term
from ...engine.layers.attention import Attend, Call
from ...engine.layers.projections import ProjectionLayer
from ...engine.loading import load_with
from ...engine.network import install_layers
from ...engine.noise import seeded_noise
from ...engine.partner_run import check_ratio, install_partners, is_flow
from ...engine.partners import Partner
from ...engine.span import Span
from ...engine.unet import find_transformers, unet_of
from .load import match_unicon
from .side_by_side import BlockNumbers, SideBySide, UniCon


@dataclass(frozen=True)
class Strengths:
    """How much image and condition see of each other, and the scale of guidance by the condition."""

    strength_x: float = 1.0
    strength_y: float = 1.0
    condition_guidance: float = 0.0


@dataclass(frozen=True, eq=False)
class PartnerSettings:
    """A given picture, `latent` (n, c, h, w), beside the one that is sampled, with its prompts (1 or n, tokens, c)."""

    role: Literal["image", "condition"]
    latent: Tensor
    positive: Tensor
    negative: Tensor
    sigma: float
    seed: int
    batch_index: Sequence[int] | None
    opens: bool
    span: Span


@dataclass(frozen=True, eq=False)
class Halves:
    """The prompts (1 or n, tokens, c) of the conditions in a latent of two halves, and their noise at the start."""

    positive: Tensor
    negative: Tensor
    condition_noise: float
    opens: bool


def add_partner(model: ModelPatcher, unicon: UniCon, given: PartnerSettings, strengths: Strengths) -> ModelPatcher:
    """Returns a clone of `model` that samples beside a given picture.

    Raises ValueError if file, picture or prompts do not fit the model.
    """
    numbers = match_unicon(unicon, model)
    channels = model.model.latent_format.latent_channels
    if given.latent.shape[1] != channels:
        raise ValueError(
            f"The partner has {given.latent.shape[1]} channels, but the model's latents have {channels}. Encode it "
            f"with the VAE of the model."
        )
    if given.sigma > 1 and is_flow(model):
        raise ValueError(
            f"partner_sigma of a flow model is from 0 (clean) to 1 (noise), but is {given.sigma:g}. Lower it."
        )
    partner = Partner(
        role=given.role,
        method="UniCon",
        name=unicon.name,
        positive=given.positive,
        negative=given.negative,
        latent=model.model.process_latent_in(given.latent.float()),
        noise=seeded_noise(given.latent, given.seed, given.batch_index).float(),
        sigma=given.sigma,
        opens=given.opens,
        span=given.span,
    )
    acts = strengths.strength_x if given.role == "condition" else strengths.strength_x or strengths.strength_y
    return _add(model, unicon, numbers, partner, strengths) if acts else model


def add_halves(model: ModelPatcher, unicon: UniCon, halves: Halves, strengths: Strengths) -> ModelPatcher:
    """Returns a clone of `model` that samples images and conditions.

    Raises ValueError if file or prompts do not fit the model.
    """
    numbers = match_unicon(unicon, model)
    check_ratio(model, halves.condition_noise)
    partner = Partner(
        role="half",
        method="UniCon Apply Joint",
        maker="UniCon Joint Latent",
        name=unicon.name,
        positive=halves.positive,
        negative=halves.negative,
        condition_noise=halves.condition_noise,
        opens=halves.opens,
    )
    return _add(model, unicon, numbers, partner, strengths) if strengths.strength_x or strengths.strength_y else model


def _add(
    model: ModelPatcher, unicon: UniCon, numbers: BlockNumbers, partner: Partner, strengths: Strengths
) -> ModelPatcher:  # fmt: skip
    _check_roles(model, partner)
    _check_prompts(model, partner)
    off: UUID | None = uuid4() if strengths.condition_guidance else None
    model = load_with(model, unicon.network)
    partner = replace(partner, off=off, order=next_order(model))
    around = SideBySide(unicon.network.model, partner.id, numbers, strengths.strength_x, strengths.strength_y)
    append(model, partner)
    layer = ProjectionLayer(order=next_order(model), sites=numbers.paths, around=around)
    append(model, layer)
    watch(model, partner.method, partner.span, layer.signs)
    install_layers(model)
    install_partners(model)
    if off is not None:
        # The partner has no rows beside a chunk with this mark (engine/partners.py), so no attention is changed.
        term = AttentionTerm(
            id=off, name="UniCon", scale=strengths.condition_guidance, span=partner.span, sites=(), apply=_unchanged
        )
        model = add_term(model, term)
    return model


def _check_prompts(model: ModelPatcher, partner: Partner) -> None:
    """Raises ValueError if another text encoder made the prompts."""
    width = find_transformers(unet_of(model))[0].context
    for text in (partner.positive, partner.negative):
        if text.shape[-1] != width:
            raise ValueError(
                f"The prompts of {partner.name} have {text.shape[-1]} numbers per token, but the model reads {width}. "
                f"Use the text encoder of the model."
            )


def _check_roles(model: ModelPatcher, partner: Partner) -> None:
    """Raises ValueError if the partners of a model leave open which rows are the image."""
    earlier = [entry.role for entry in entries(model.model_options["transformer_options"], Partner)]
    if "image" in [*earlier, partner.role] and earlier:
        raise ValueError(
            "A UniCon with partner_role image makes the sampled picture the condition, so it must be the only UniCon "
            "of a model. Remove the others, or set partner_role to condition."
        )
    if partner.role == "half" and "half" in earlier:
        raise ValueError(
            "UniCon Apply Joint can be on a model only once: the latent has one half for the condition. Add further "
            "conditions with UniCon Apply."
        )


def _unchanged(call: Call, below: Attend) -> Tensor:
    return below(call)
