"""Perturbed-Attention Guidance (2403.17377) in joint attention: a token of the picture sees itself and the rest.

Stable Diffusion 3 attends over text and picture at once. diffusers' pipelines for it let a token of the picture attend
to itself and to the text, and to no other token of the picture. That is a softmax over the text's keys and one more.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 1 << 24  # logits in one go, so that memory does not grow with the picture


def attend_to_itself_and(
    q: Tensor, k: Tensor, v: Tensor, others: tuple[Tensor, Tensor], mask: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The attention (b, n, heads * d) of tokens that see themselves and m other tokens.

    q, k and v (b, heads, n, d) are those of the tokens, `others` the keys and values (b, heads, m, d) of what else they
    see. `mask` (b or 1, heads or 1, 1 or n, m) is added to the logits of the others, or says which are seen.
    """
    b, heads, n, d = q.shape
    keys, values = others
    outs = []
    step = max(1, AT_ONCE // max(1, b * heads * keys.shape[2]))
    for start in range(0, n, step):
        part = slice(start, start + step)
        own = (q[:, :, part] * k[:, :, part]).sum(-1, keepdim=True)
        logits = torch.cat([q[:, :, part] @ keys.transpose(-1, -2), own], -1).float() * d**-0.5
        if mask is not None:
            shown = mask if mask.shape[-2] == 1 else mask[..., part, :]
            seen = logits[..., :-1]
            seen = seen.masked_fill(~shown, float("-inf")) if shown.dtype == torch.bool else seen + shown
            logits = torch.cat([seen, logits[..., -1:]], -1)
        weights = logits.softmax(-1).to(v.dtype)
        outs.append(weights[..., :-1] @ values + weights[..., -1:] * v[:, :, part])
    return torch.cat(outs, 2).transpose(1, 2).flatten(2)
