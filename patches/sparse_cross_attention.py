"""PLADIS (2503.07677): sparser text attention, in every prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..models.sparse_cross_attention import sparse_less_dense
from .attention import Attend, Call, Layer
from .chunk_conds import info_of, install_chunk_infos
from .groups import TOKENS
from .network import add_attention_layer
from .sites import Site
from .span import Span

DEPTH = 2  # it is the attention itself that is another one, for whatever is built on it


def add_sparse_attention(model: ModelPatcher, sites: Iterable[Site], scale: float, span: Span) -> ModelPatcher:
    """A clone of `model` with sparse attention at these text attentions."""
    model = add_attention_layer(model, sites, sparse_attention(scale), span, depth=DEPTH)
    install_chunk_infos(model)
    return model


def sparse_attention(scale: float) -> Layer:
    """Attention plus `scale` times what it lacks to a sparse one; with 1 it is sparse, above extrapolated."""

    def attend_sparsely(call: Call, below: Attend) -> Tensor:
        heads, count = call.options["n_heads"], len(call.chunks)
        parts = zip(*(tensor.chunk(count) for tensor in (call.q, call.k, call.v)), lengths(call), strict=True)
        lacking = [sparse_less_dense(q, k[:, :length], v[:, :length], heads) for q, k, v, length in parts]
        return below(call) + scale * torch.cat(lacking)

    return attend_sparsely


def lengths(call: Call) -> Sequence[int]:
    """The tokens of each chunk's own text. What the host repeats to fill a batch would take part more than once."""
    found = call.k.shape[1]
    known = call.options.get(TOKENS) or [getattr(info_of(call.options, i), "tokens", None) for i in call.chunks]
    return [length if length and found % length == 0 else found for length in known]
