"""IP-Adapters put into networks of the host by hooks of torch, by the formulas alone, as references for the nodes.

Inside the block of Python every row of every call has the adapter. A guided prediction is thus a sum of runs at cfg 1.
Several adapters are blocks inside one another. `weight` may be a tensor (n, 1) with a weight for each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from reins.tests.helpers.ip_adapters_by_hand import (
    instantx_flux_term,
    instantx_flux_tokens,
    resampled,
    sd3_term,
    xlabs_term,
    xlabs_tokens,
)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Weight = float | Tensor
Weights = Mapping[str, Tensor]
Hooks = list[RemovableHandle]


@contextmanager
def sd3_added(model: ModelPatcher, weights: Weights, hidden: Tensor, weight: Weight = 1.0) -> Iterator[None]:
    """SD3.5's adapter for hidden states (b, n, width), one picture or one for each row."""
    network, now = model.model.diffusion_model, {}

    def make_tokens(_: nn.Module, args: tuple) -> None:
        now["tokens"] = resampled(weights, hidden, args[1][:1].expand(len(hidden)))

    hooks = [network.register_forward_pre_hook(make_tokens)]
    attentions = [
        getattr(block.x_block, name)
        for block in network.joint_blocks
        for name in ("attn", "attn2")
        if hasattr(block.x_block, name)
    ]
    for i, attention in enumerate(attentions):

        def term(qkv: Tensor, i: int = i, heads: int = attention.num_heads) -> Tensor:
            q, k, v = rearrange(qkv, "b n (part h d) -> part b h n d", part=3, h=heads)
            tokens, time = now["tokens"]
            return sd3_term(weights, i, q, k, v, tokens.expand(len(q), -1, -1), time.expand(len(q), -1))

        hooks += _from_to(attention.qkv, attention.proj, term, weight)
    yield from _until_done(hooks)


@contextmanager
def xlabs_added(model: ModelPatcher, weights: Weights, embeds: Tensor, weight: Weight = 1.0) -> Iterator[None]:
    """XLabs' adapter for image_embeds (b, width), one picture or one for each row."""
    hooks: Hooks = []
    for i, block in enumerate(model.model.diffusion_model.double_blocks):
        queries: list[Tensor] = []

        def note(_: nn.Module, args: tuple, out: tuple, queries: list = queries) -> None:
            queries.append(out[0].clone())

        def add(_: nn.Module, args: tuple, out: tuple, i: int = i, queries: list = queries) -> tuple:
            q = queries.pop()
            tokens = xlabs_tokens(weights, embeds).expand(len(q), -1, -1)
            return out[0] + weight * xlabs_term(weights, i, q, tokens), *out[1:]

        hooks += [block.img_attn.norm.register_forward_hook(note), block.register_forward_hook(add)]
    yield from _until_done(hooks)


@contextmanager
def instantx_flux_added(
    model: ModelPatcher, weights: Weights, pooled: Tensor, weight: Weight = 1.0, in_singles: Weight | None = None
) -> Iterator[None]:  # fmt: skip
    """InstantX' adapter for Flux for the pooled output (b, width).

    Single blocks have the weight `in_singles`, if there is one. It is for text tokens too.
    """
    network, hooks = model.model.diffusion_model, []
    places = [(block.img_attn.norm, block.img_attn.proj) for block in network.double_blocks]
    places += [(block.norm, block.linear2) for block in network.single_blocks]
    for i, (norm, projection) in enumerate(places):
        is_single = in_singles is not None and i >= len(network.double_blocks)

        def term(normed: tuple[Tensor, Tensor], i: int = i) -> Tensor:
            tokens = instantx_flux_tokens(weights, pooled).expand(len(normed[0]), -1, -1)
            return instantx_flux_term(weights, i, normed[0], tokens)

        hooks += _from_to(norm, projection, term, in_singles if is_single else weight)
    yield from _until_done(hooks)


def _from_to(source: nn.Module, target: nn.Module, term: Callable[[Any], Tensor], weight: Weight) -> Hooks:
    """Hooks that add a term of what `source` returns to the first numbers of what `target` is given."""
    terms: list[Tensor] = []

    def note(_: nn.Module, args: tuple, out: Any) -> None:
        terms.append(weight * term(out))

    def add(_: nn.Module, args: tuple) -> tuple:
        added = terms.pop()
        rest = args[0].shape[-1] - added.shape[-1]
        return (args[0] + torch.nn.functional.pad(added, (0, rest)),)

    return [source.register_forward_hook(note), target.register_forward_pre_hook(add)]


def _until_done(hooks: Hooks) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
