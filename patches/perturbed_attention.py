"""Perturbed-Attention Guidance (2403.17377)."""

from __future__ import annotations

from torch import Tensor

from .attention import Attend, Call


def identity_attention(call: Call, below: Attend) -> Tensor:
    """The attention map becomes the identity, so each token keeps its own value (equation 13)."""
    if call.q.shape != call.v.shape:
        raise RuntimeError(
            f"Perturbed-Attention Guidance needs one query per value, but found {call.q.shape[1]} queries and "
            f"{call.v.shape[1]} values: another patch merges tokens. Remove it from the model."
        )
    return call.v
