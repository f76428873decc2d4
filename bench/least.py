"""The least that a method costs: what it must compute in a step, by the host's own means and without this pack."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import find_sites
from torch import Tensor

IMAGE_TOKENS = 4


def with_image_attentions(model: ModelPatcher, count: int) -> ModelPatcher:
    """Returns a clone of `model` whose text attentions add `count` attentions to four drawn tokens.

    One function in the host's slot does it. It knows of no ranges, masks, rows or other packs, and makes k and v once.
    """
    model = model.clone()
    drawn: dict[tuple[int, int, int], Tensor] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        heads = options["n_heads"]
        out = optimized_attention(q, k, v, heads, attn_precision=options["attn_precision"], transformer_options=options)
        width = q.shape[2] // heads
        in_heads = q.reshape(1, -1, heads, width).transpose(1, 2)
        for number in range(count):
            key = number, heads, width
            if key not in drawn:
                drawn[key] = torch.randn(2, 1, heads, IMAGE_TOKENS, width)
            image = attention_pytorch(in_heads, *drawn[key], heads, skip_reshape=True)
            out = out + image.reshape(q.shape)
        return out

    for site in find_sites(model, "attn2"):
        model.set_model_attn2_replace(attend, site.block, site.number, site.index)
    return model
