"""Token Perturbation Guidance (2506.10036): a prediction whose tokens are shuffled in some transformer blocks.

The paper shuffles the tokens that enter a block. What a block does to its tokens it does to each place alike, so that
shuffling them after its self-attention, where the host offers them to patches, gives the same output; no forward of the
network is replaced for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from .guidance import Term
from .run import STEP, Step, run_in
from .sites import Depth, Site
from .token_layers import PerturbedTokens


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenTerm(PerturbedTokens, Term):
    """A term whose prediction is made with `change` on the tokens of `sites`; layers before them may be shared."""

    share: bool = True

    @property
    def first_change(self) -> Depth | None:
        return min(site.depth for site in self.sites) if self.share else None


def shuffle_tokens(tokens: Tensor, site: Site, options: Mapping[str, Any]) -> Tensor:
    """The tokens (b, n, c) in another order, which seed, noise level and block alone decide."""
    run, step = run_in(options), options[STEP]
    count, device = tokens.shape[1], tokens.device
    order = run.once_at(step.sigma, (shuffle_tokens, site, count, device), lambda: _order(run.seed, step, site, count))
    return tokens[:, order.to(device)]


def _order(seed: int, step: Step, site: Site, count: int) -> Tensor:
    name = struct.pack("<Qd", seed % 2**64, step.sigma) + repr(tuple(site)).encode()
    own_seed = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
    return torch.randperm(count, generator=torch.Generator().manual_seed(own_seed))
