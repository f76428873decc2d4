"""The layers on the attentions of a transformer, by the host's override of attention.

The host has one place for such a function. It is one and the same function in every call, so that a compiled network is
not compiled anew. What it does is in the passage of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.call import NETWORK
from ..layers.slots import stacked
from ..rows.chunk import CHUNKS, Chunk, chunks_at
from ..sites import Site
from .call import DiTCall, by_heads
from .passage import OPTIONS, Passage, passage_in
from .text_rows import TextRows


def attend_with_layers(
    func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
) -> Tensor:
    """Returns what a call of the host's attention gives with the layers of this site, in the form that it asks for.

    q, k and v are (b, tokens, heads * d), or (b, heads, tokens, d) if `skip_reshape` is set. Stable Diffusion 3 gives
    values (b, tokens, heads, d).
    """
    passage = passage_in(kwargs.get(OPTIONS))
    if passage is None:
        return func(q, k, v, heads, *args, **kwargs)
    attend = func if passage.occupant is None else _below(passage.occupant, func)
    site = passage.next_attention()
    layers = passage.by_site.get(site, ())
    hides_text = site is not None and passage.texts is not None and passage.texts.are_padded
    if not layers and not hides_text:
        return attend(q, k, v, heads, *args, **kwargs)
    call = _call(passage, site, (q, k, v), heads, args, kwargs)
    out = stacked(layers, _host_attention(attend, args, kwargs))(call)
    if kwargs.get("skip_output_reshape"):
        out = out.unflatten(-1, (heads, -1)).transpose(1, 2)
    return out


attend_beyond_torch = torch.compiler.disable(attend_with_layers)  # for networks that other packs compile


def _below(occupant: Callable[..., Tensor], func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attend(*args: Any, **kwargs: Any) -> Tensor:
        return occupant(func, *args, **kwargs)

    return attend


def _call(
    passage: Passage, site: Site, tensors: tuple[Tensor, Tensor, Tensor], heads: int, args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> DiTCall:  # fmt: skip
    options = kwargs[OPTIONS]
    q, k, v = _by_heads(tensors, heads, kwargs.get("skip_reshape", False))
    chunks = chunks_at(options.get(CHUNKS, passage.chunks), options, len(q), options[NETWORK].is_traced)
    picture, text = passage.parts(site, q.shape[2])
    mask = args[0] if args else kwargs.get("mask")
    if passage.texts is not None and text.stop > text.start:
        mask = _hiding(passage.texts, chunks, text, k, mask)
    return DiTCall(
        q=q, k=k, v=v, site=site, heads=heads, mask=mask, picture=picture, grid=passage.picture.grid, text=text,
        is_joint=site.kind == "attn1", chunks=chunks, options=options, positions=passage.positions,
        after=passage.after, **options[NETWORK]._asdict(),
    )  # fmt: skip


def _hiding(
    texts: TextRows, chunks: Sequence[Chunk], text: slice, k: Tensor, mask: Tensor | None
) -> Tensor | None:  # fmt: skip
    """Returns the mask with the repeated tokens of texts hidden, for keys (rows, heads, tokens, d)."""
    unseen = [texts.unseen(chunk, text.stop - text.start) for chunk in chunks]
    if not any(part.stop > part.start for of_chunk in unseen for part in of_chunk):
        return mask
    hiding = k.new_zeros(len(chunks), 1, 1, k.shape[2])
    for row, of_chunk in zip(hiding, unseen, strict=True):
        for part in of_chunk:
            row[..., text.start + part.start : text.start + part.stop] = torch.finfo(k.dtype).min
    hiding = hiding.repeat_interleave(len(k) // len(chunks), 0)
    if mask is None:
        return hiding
    mask = by_heads(mask)
    return hiding.masked_fill(~mask, torch.finfo(k.dtype).min) if mask.dtype == torch.bool else hiding + mask


def _by_heads(tensors: tuple[Tensor, Tensor, Tensor], heads: int, is_by_heads: bool) -> list[Tensor]:
    """Returns queries, keys and values (b, heads, tokens, d)."""
    if is_by_heads:
        return list(tensors)
    d = tensors[0].shape[-1] // heads
    return [
        (part if part.ndim == 4 else part.unflatten(-1, (part.shape[-1] // d, d))).transpose(1, 2) for part in tensors
    ]


def _host_attention(
    attend: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[DiTCall], Tensor]:
    """Returns the host's attention, by the kernel that the user chose, of a call."""

    def below(call: DiTCall) -> Tensor:
        named = {**kwargs, "skip_reshape": True, "skip_output_reshape": False, OPTIONS: call.options}
        if args:
            return attend(call.q, call.k, call.v, call.heads, call.mask, *args[1:], **named)
        return attend(call.q, call.k, call.v, call.heads, **{**named, "mask": call.mask})

    return below
