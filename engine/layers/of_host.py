"""The host's own attention, which lies below all layers if no other pack has put one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from .attention import Attend, Call

OVERRIDE = "optimized_attention_override"  # the host's place for another function in all attentions


def host_attention(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Returns the attention of q, k and v, (rows, tokens, heads * d) each, by the kernel that the user chose."""
    precision = options["attn_precision"]
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options)


def attend_as_host(call: Call) -> Tensor:
    """Returns the attention (rows, tokens, heads * d) of a call by the host.

    Raises RuntimeError if queries, keys and values differ in rows.
    """
    if len(call.k) != len(call.q):
        call.check_rows()
    return host_attention(call.q, call.k, call.v, call.options)


def is_of_host(below: Attend, call: Call) -> bool:
    """Whether the host's own attention lies below a layer, and nothing of this pack or of another one."""
    return below is attend_as_host and OVERRIDE not in call.options


def is_fresh(below: Attend, call: Call) -> bool:
    """Whether a layer may write into what lies below it returns: it is a new tensor of the host's, and nobody else's.

    Gradients need it as it was. torch.compile finds the place for results itself.
    """
    return is_of_host(below, call) and not call.is_traced and not torch.is_grad_enabled()
