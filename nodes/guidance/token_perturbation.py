"""Token Perturbation Guidance (2506.10036): a prediction whose tokens are shuffled in some transformer blocks.

The paper shuffles the tokens that enter a block. A block treats all places alike, so shuffling them after its
self-attention, where the host gives them to patches, leads to the same output. No forward of the network is replaced.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.dit.block_layers import Block, BlockCall, Streams
from ...engine.find import all_sites, dit_family
from ...engine.guidance import BlockTerm, TokenTerm, add_term
from ...engine.layers.tokens import TokenCall
from ...engine.run import Run
from ...engine.sites import Site
from ...engine.span import Span
from ..inputs.auto_layers import chosen_sites
from ..inputs.schema import (
    layers_input,
    model_input,
    model_output,
    percent_inputs,
    refresh_input,
    scale_input,
    schema,
    share_input,
)


class TokenPerturbationGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_TokenPerturbationGuidance",
            display_name="TPG – Token Perturbation Guidance",
            category="reins/guidance",
            description="Clears up structure: steers away from a prediction whose parts are shuffled inside the "
            "network (TPG). Works with and without CFG. The noise of the sampler stays the same. One more evaluation "
            "per step.",
            search_aliases=["TPG", "token perturbation guidance", "shuffle", "guidance", "structure"],
            inputs=[
                model_input(), scale_input(3.0), *percent_inputs(), layers_input("transformer blocks to shuffle"),
                share_input(), refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, start_percent: float, end_percent: float, layers: str,
        share_layers: bool = True, refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        family = dit_family(model)
        if family is not None and not family.has_rope:
            raise ValueError(
                f"Token Perturbation Guidance has no effect on {family.name}: its positions are added to the tokens "
                f"before the first block, so that the blocks work alike in any order. Use PAG, SEG or Skip Layer "
                f"Guidance."
            )
        sites = chosen_sites(model, layers, all_sites(model, "attn1"), "shuffled tokens")
        given = {
            "scale": scale, "span": Span(start_percent, end_percent), "sites": sites, "share": share_layers,
            "refresh": refresh,
        }  # fmt: skip
        if family is None:
            term = TokenTerm(name="TPG", change=shuffle_tokens, prepare=order_of_tokens, **given)
        else:
            term = BlockTerm(name="TPG", change=shuffle_block, prepare=order_of_tokens, **given)
        return io.NodeOutput(add_term(model, term) if scale else model)


def shuffle_tokens(call: TokenCall) -> Tensor:
    """Returns the tokens (b, n, c) in another order, which depends on seed, noise level and block alone."""
    return call.tokens[:, _order_for(call, call.tokens.shape[1], call.tokens.device)]


def shuffle_block(call: BlockCall, below: Block) -> Streams:
    """Returns what a block of a transformer makes of shuffled tokens of the picture, put back into their places.

    The positions that the block encodes in its attention stay where they were.
    """
    name, tokens = next(iter(call.streams.items()))
    order = _order_for(call, call.picture.stop - call.picture.start, tokens.device)
    made = below(call.changed(streams={**call.streams, name: _reordered(tokens, call.picture, order)}))
    return {**made, name: _reordered(made[name], call.picture, order.argsort())}


def _order_for(call: TokenCall | BlockCall, count: int, device: torch.device) -> Tensor:
    if call.prepared is not None and len(call.prepared) == count:
        return call.prepared
    # Another pack has changed the number of tokens.
    return order_of_tokens(call.run, call.sigma, call.site, count, device)


def order_of_tokens(run: Run, sigma: float, site: Site, count: int, device: torch.device) -> Tensor:
    """Returns the order (count,) of the tokens of a block, which is drawn once in a step."""
    key = order_of_tokens, site, count, device
    return run.once_at(sigma, key, lambda: _order(run.seed, sigma, site, count).to(device))


def _reordered(tokens: Tensor, picture: slice, order: Tensor) -> Tensor:
    """Returns the tokens (b, ..., c) with those of the picture in another order."""
    flat = tokens.flatten(1, -2)
    parts = [flat[:, : picture.start], flat[:, picture][:, order], flat[:, picture.stop :]]
    return torch.cat(parts, 1).view_as(tokens)


@torch.compiler.disable  # in a compiled network torch would trace the hash, and fails
def _order(seed: int, sigma: float, site: Site, count: int) -> Tensor:
    name = struct.pack("<Qd", seed % 2**64, sigma) + repr(tuple(site)).encode()
    own_seed = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
    return torch.randperm(count, generator=torch.Generator().manual_seed(own_seed))
