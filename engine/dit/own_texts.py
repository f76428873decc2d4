"""Texts of a method that a transformer reads beside the prompts of its call.

A transformer may attend to its text apart from the picture. Then its own modules make keys and values of a text of a
method. Or text and picture are one sequence. Then a text of a method needs rows of the call (text_rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import torch
from comfy.sampler_helpers import convert_cond
from comfy.samplers import encode_model_conds
from torch import Tensor, nn

from ..entries import NetworkEntry, entries
from ..run import Run, run_in
from ..span import WHOLE_RUN, Span
from .call import DiTCall
from .families import Family, unwrapped

CONDS_OF_TEXTS = "reins_conds_of_texts"
LLAMA = "encoder_hidden_states_llama3"


@dataclass(frozen=True, eq=False)
class OwnText:
    """One entry of a prompt as nodes hand it around: text (1 or n, tokens, c) and settings, and when it acts."""

    conditioning: tuple[Tensor, Mapping[str, Any]]
    span: Span = WHOLE_RUN
    id: UUID = field(default_factory=uuid4)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextsOfMethod(NetworkEntry):
    """Texts that a method reads in a transformer. `method` is its name for errors.

    If they are `in_rows`, each positive chunk of a call gets a further chunk for each text.
    """

    texts: tuple[OwnText, ...]
    method: str
    in_rows: bool
    span: Span = WHOLE_RUN


def texts_in(options: dict[str, Any], in_span: Callable[[Span], bool]) -> list[tuple[TextsOfMethod, list[OwnText]]]:
    """Returns the methods with texts that act in a call, and those of their texts that do."""
    acting = [entry for entry in entries(options, TextsOfMethod) if in_span(entry.span)]
    return [(entry, [text for text in entry.texts if in_span(text.span)]) for entry in acting]


def with_conds_of_texts(
    options: dict[str, Any], model: Any, x: Tensor, in_span: Callable[[Span], bool]
) -> dict[str, Any]:  # fmt: skip
    """Returns the options of a call with what the model makes of the texts of methods, for x (b, c, ...).

    Raises RuntimeError if a text lacks what the model reads beside it.
    """
    run = run_in(options)
    conds = {
        text.id: _conds(text, entry.method, model, x, run)
        for entry, texts in texts_in(options, in_span)
        for text in texts
    }
    return {**options, CONDS_OF_TEXTS: conds} if conds else options


def _conds(text: OwnText, method: str, model: Any, x: Tensor, run: Run) -> dict[str, Any]:
    """Returns the inputs of the model for a text of a method, by their names."""

    def make() -> dict[str, Any]:
        prompt = convert_cond([list(text.conditioning)])
        try:
            conds = encode_model_conds(model.extra_conds, prompt, x, x.device, "negative")
        except KeyError as missing:
            raise RuntimeError(
                f"The negative of {method} should come with {missing}, which this model reads beside the text, but it "
                "has none. Encode it with the CLIP of this model."
            ) from missing
        values = {name: cond.cond for name, cond in conds[0]["model_conds"].items()}
        return {name: value.to(x.device) if isinstance(value, Tensor) else value for name, value in values.items()}

    return make() if run.is_hooked else run.once((text.id, "conds"), make)


def text_width(network: nn.Module, family: Family) -> int | None:
    """Returns how many numbers a token of a text has. None if the network does not tell."""
    network = unwrapped(network)
    try:
        reader = network.get_submodule(family.reads_text) if family.reads_text else None
    except AttributeError:  # some networks have a plain function there
        return None
    parts = () if reader is None else reader.modules()
    return next((part.in_features for part in parts if hasattr(part, "in_features")), None)


def keys_and_values(call: DiTCall, family: Family, text: OwnText) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns k and v (1 or n, heads, tokens, d) of a text in a text attention, and its mask (1 or n, 1, 1, tokens).

    The network's own modules make them, so that LoRA counts.
    """
    conds, network = call.options[CONDS_OF_TEXTS][text.id], call.module("")
    context = _context(network, family, conds, call.k)
    block = getattr(network, family.stacks[0].attribute)[call.site.number]
    k, v = PROJECTIONS[family.cross](block, context)
    k, v = (part.unflatten(-1, (call.heads, -1)) if part.ndim == 3 else part for part in (k, v))
    return k.transpose(1, 2), v.transpose(1, 2), _mask(conds.get("attention_mask"), k)


def _context(network: Any, family: Family, conds: Mapping[str, Any], like: Tensor) -> Tensor:
    """Returns a text (1 or n, tokens, c) as the blocks of the network get it."""
    context = conds["c_crossattn"].to(like)
    if family.cross == "wan":
        return network.text_embedding(context)
    if family.cross == "ltxv":
        is_projected = getattr(network, "caption_proj_before_connector", False)
        return context if is_projected or network.caption_projection is None else network.caption_projection(context)
    if conds.get("t5xxl_ids") is not None:  # Anima, if the host has not done it yet
        weights = conds["t5xxl_weights"].to(like)
        return network.preprocess_text_embeds(context, conds["t5xxl_ids"].to(like.device), t5xxl_weights=weights)
    return context


def _mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Returns the host's mask of a text (b, tokens) as it is added to the logits (b, 1, 1, tokens)."""
    if mask is None:
        return None
    mask = mask.to(like.device)
    if not torch.is_floating_point(mask):
        mask = (mask - 1).to(like.dtype) * torch.finfo(like.dtype).max
    return mask.reshape(len(mask), 1, -1, mask.shape[-1])


def _of_wan(block: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.cross_attn
    return attention.norm_k(attention.k(context)), attention.v(context)


def _of_ltx(block: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.attn2
    return attention.k_norm(attention.to_k(context)), attention.to_v(context)


def _of_predict2(block: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.cross_attn
    k, v = (part(context).unflatten(-1, (attention.n_heads, -1)) for part in (attention.k_proj, attention.v_proj))
    return attention.k_norm(k), attention.v_norm(v)


PROJECTIONS = {"wan": _of_wan, "ltxv": _of_ltx, "predict2": _of_predict2}
