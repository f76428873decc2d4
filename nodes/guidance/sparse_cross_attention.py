"""PLADIS (2503.07677): sparser text attention, in every prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ...engine.dit.call import DiTCall, by_heads
from ...engine.find import all_sites, dit_family
from ...engine.layers.attention import Attend, Call, Layer
from ...engine.layers.of_host import is_of_host
from ...engine.network import Named, add_attention_layer
from ...engine.sites import Site
from ...engine.span import Span
from ...models.guidance.sparse_cross_attention import sparse_less_dense, sparser_attention
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema

ROUNDING = 4  # units in the last place by which equal keys may differ
DEPTH = 2  # below all other layers, which build on this attention


class SparseCrossAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SparseCrossAttention",
            display_name="PLADIS – Sparse Cross-Attention",
            category="reins/guidance",
            description="Follows the words of the prompt more closely: each place attends to few of them (PLADIS, with "
            "exact entmax). No further evaluation, and no CFG needed.",
            search_aliases=["PLADIS", "entmax", "sparse cross-attention", "sparse attention", "prompt following"],
            inputs=[
                model_input(),
                make_input(
                    io.Float, "scale", default=2.0, min=0.0, max=10.0, step=0.01,
                    tooltip="0: the model's own attention. 1: sparse attention. Above: more than sparse, 2 is the "
                    "paper's choice.",
                ),
                *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        sites, family = all_sites(model, "attn2"), dit_family(model)
        if family is not None and not sites:
            raise ValueError(
                f"Sparse Cross-Attention (PLADIS) makes text attention sparse, but {family.name} has no text attention "
                f"apart from the picture's: it attends over text and picture at once. No sparse form of that is "
                f"published. Remove the node."
            )
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_sparse_attention(model, sites, scale, Span(start_percent, end_percent)))


def add_sparse_attention(model: ModelPatcher, sites: Iterable[Site], scale: float, span: Span) -> ModelPatcher:
    """Returns a clone of `model` with sparse attention at these text attentions."""
    layer = Named("PLADIS", sparse_attention(scale), is_traceable=True)
    return add_attention_layer(model, sites, layer, span, depth=DEPTH)


def sparse_attention(scale: float) -> Layer:
    """Returns a layer that adds `scale` times the difference from dense to sparse attention."""

    def attend_sparsely(call: Call | DiTCall, below: Attend) -> Tensor:
        if isinstance(call, DiTCall):
            tokens = (part.transpose(1, 2).flatten(2) for part in (call.q, call.k, call.v))
            mask = None if call.mask is None else by_heads(call.mask)
            return below(call) + scale * sparse_less_dense(*tokens, call.heads, mask)
        call.check_rows()
        lengths = text_lengths(call)
        if len(set(lengths)) == 1:
            k, v = (part[:, : lengths[0]] for part in (call.k, call.v))
            if is_of_host(below, call):  # the same weights give the dense attention too
                return sparser_attention(call.q, k, v, call.heads, scale)
            return torch.add(below(call), sparse_less_dense(call.q, k, v, call.heads), alpha=scale)
        parts = zip(call.split(call.q), call.split(call.k), call.split(call.v), lengths, strict=True)
        differences = [sparse_less_dense(q, k[:, :length], v[:, :length], call.heads) for q, k, v, length in parts]
        return torch.add(below(call), torch.cat(differences), alpha=scale)

    return attend_sparsely


def text_lengths(call: Call) -> Sequence[int]:
    """Returns the number of tokens of each chunk's text, without those that were repeated to fill a batch."""
    whole = call.k.shape[1]
    known = [chunk.tokens for chunk in call.chunks]
    if None in known and call.texts is not None:
        # Another pack changes texts or adds those of regions, and says nothing of their lengths.
        names = tuple((chunk.uuid, chunk.label) for chunk in call.chunks)
        known = call.run.once_at(call.sigma, (text_lengths, names, len(call.k), whole), lambda: _periods(call))
    return [length if length and whole % length == 0 else whole for length in known]


def _periods(call: Call) -> list[int]:
    """Returns for each chunk the least number of tokens whose repetition makes up its keys and values.

    Equal tokens may differ by rounding, for a kernel may sum them in another order. The device is read once.
    """
    count, whole = len(call.chunks), call.k.shape[1]
    lengths = [length for length in range(1, whole) if whole % length == 0]
    repeats = []
    for length in lengths:
        of_both = []
        for part in (call.k, call.v):
            tokens = rearrange(part, "(chunks b) (times n) c -> chunks b times n c", chunks=count, n=length)
            tolerance = ROUNDING * torch.finfo(part.dtype).eps * part.abs().amax()
            of_both.append(((tokens - tokens[:, :, :1]).abs() <= tolerance).flatten(1).all(1))
        repeats.append(of_both[0] & of_both[1])
    flags = torch.stack(repeats).T.tolist() if repeats else [[]] * count
    return [next((n for n, holds in zip(lengths, of_chunk, strict=True) if holds), whole) for of_chunk in flags]
