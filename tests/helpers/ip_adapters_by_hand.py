"""IP-Adapters of diffusion transformers by their formulas, in plain torch, from the tensors of a file.

What a term returns is without the weight of the adapter. In the shapes below, m counts tokens of the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

HEAD = 64  # of SD3.5's resampler
Weights = Mapping[str, Tensor]


def resampled(weights: Weights, hidden: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (b, m, c) and the time embedding (b, dim) of SD3.5's adapter, for a timestep (b,) of 0 to 1000.

    `hidden` (b, n, width) are the last hidden states but one of the encoder.
    """
    temb = _linear(weights, "image_proj.time_embedding.linear_1", _waves(weights, timestep))
    temb = _linear(weights, "image_proj.time_embedding.linear_2", silu(temb))
    picture = _linear(weights, "image_proj.proj_in", hidden) + temb[:, None]
    latents = weights["image_proj.latents"].repeat(len(hidden), 1, 1)
    depth = len({key.split(".")[2] for key in weights if key.startswith("image_proj.layers.")})
    for i in range(depth):
        name = f"image_proj.layers.{i}"
        shift, scale, shift_after, scale_after = _linear(weights, f"{name}.2.1", silu(temb))[:, None].chunk(4, -1)
        asking = _norm(weights, f"{name}.0.norm2", latents) * (1 + scale) + shift
        seen = torch.cat([_norm(weights, f"{name}.0.norm1", picture), asking], 1)
        q, (k, v) = _linear(weights, f"{name}.0.to_q", asking), _linear(weights, f"{name}.0.to_kv", seen).chunk(2, -1)
        heads = q.shape[-1] // HEAD
        latents = latents + _linear(weights, f"{name}.0.to_out", attention(*(_heads(x, heads) for x in (q, k, v))))
        inner = _norm(weights, f"{name}.1.0", latents) * (1 + scale_after) + shift_after
        latents = latents + _linear(weights, f"{name}.1.3", gelu(_linear(weights, f"{name}.1.1", inner)))
    return _norm(weights, "image_proj.norm_out", _linear(weights, "image_proj.proj_out", latents)), temb


def _waves(weights: Weights, timestep: Tensor) -> Tensor:
    """Cosines first, then sines.

    At 1000 the rounding of frequencies shows (1e-4 of an angle), so that these are rounded as in diffusers.
    """
    half = weights["image_proj.time_embedding.linear_1.weight"].shape[1] // 2
    angles = timestep[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


def sd3_term(
    weights: Weights, i: int, q_raw: Tensor, k_raw: Tensor, v_image: Tensor, tokens: Tensor, temb: Tensor
) -> Tensor:  # fmt: skip
    """What SD3.5's adapter adds to the picture's part of attention i, before the projection, (b, n, heads * d).

    q, k and v (b, heads, n, d) are the picture's, before the norms of the network. `tokens` (b, m, heads * d) and
    `temb` (b, dim) are those of `resampled`.
    """
    name, heads = f"ip_adapter.{i}", q_raw.shape[1]
    shift, scale = _linear(weights, f"{name}.norm_ip.linear", silu(temb))[:, None].chunk(2, -1)
    normed = layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
    k_adapter, v_adapter = (_heads(_linear(weights, f"{name}.to_{part}_ip", normed), heads) for part in "kv")
    q = rms(q_raw, 1e-6) * weights[f"{name}.norm_q.weight"]
    k = rms(k_raw, 1e-6) * weights[f"{name}.norm_k.weight"]
    k_adapter = rms(k_adapter, 1e-6) * weights[f"{name}.norm_ip_k.weight"]
    return attention(q, torch.cat([k, k_adapter], 2), torch.cat([v_image, v_adapter], 2))


def xlabs_tokens(weights: Weights, embeds: Tensor) -> Tensor:
    """The tokens (b, m, context) of XLabs' adapter for image_embeds (b, width)."""
    return _tokens(weights, "ip_adapter_proj_model.norm", _linear(weights, "ip_adapter_proj_model.proj", embeds))


def xlabs_term(weights: Weights, i: int, q: Tensor, tokens: Tensor) -> Tensor:
    """What XLabs' adapter adds to the picture after double block i, (b, n, heads * d), with no gate.

    q (b, heads, n, d) are the picture's queries, with the norm of the network and before RoPE.
    """
    stem = f"double_blocks.{i}.processor.ip_adapter_double_stream"
    return attention(q, *(_heads(_linear(weights, f"{stem}_{part}_proj", tokens), q.shape[1]) for part in "kv"))


def instantx_flux_tokens(weights: Weights, pooled: Tensor) -> Tensor:
    """The tokens (b, m, context) of InstantX' adapter for Flux, for the pooled output (b, width) of SigLIP."""
    inner = gelu(_linear(weights, "image_proj.proj.0", pooled))
    return _tokens(weights, "image_proj.norm", _linear(weights, "image_proj.proj.2", inner))


def siglip_pooled(weights: Weights, hidden: Tensor, heads: int = 16) -> Tensor:
    """SigLIP's pooled output (b, width), of its last hidden states (b, n, width) behind the last norm.

    A learned query looks at all tokens. ComfyUI leaves this head of the encoder's file out.
    """
    name = "vision_model.head"
    matrices, biases = (weights[f"{name}.attention.in_proj_{part}"].chunk(3) for part in ("weight", "bias"))
    inputs = (weights[f"{name}.probe"].expand(len(hidden), -1, -1), hidden, hidden)
    q, k, v = (_heads(x @ m.T + bias, heads) for x, m, bias in zip(inputs, matrices, biases, strict=True))
    seen = _linear(weights, f"{name}.attention.out_proj", attention(q, k, v))
    inner = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.layernorm", seen, 1e-6))
    return (seen + _linear(weights, f"{name}.mlp.fc2", gelu(inner, approximate="tanh")))[:, 0]


def instantx_flux_term(weights: Weights, i: int, q: Tensor, tokens: Tensor) -> Tensor:
    """What InstantX' adapter for Flux adds to attention i before the projection, (b, n, heads * d).

    q (b, heads, n, d) are queries with the norm of the network and before RoPE: those of the picture in double blocks,
    of text and picture in single blocks, which are counted behind the double ones.
    """
    k, v = (_heads(_linear(weights, f"ip_adapter.{i}.to_{part}_ip", tokens), q.shape[1]) for part in "kv")
    return attention(q, rms(k, 1e-5), rms(v, 1e-5))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (b, n, heads * d) of q, k and v (b, heads, n, d)."""
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return rearrange(scores @ v, "b h n d -> b n (h d)")


def rms(x: Tensor, eps: float) -> Tensor:
    """Vectors (..., d) over the root of their mean square."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _tokens(weights: Weights, norm: str, flat: Tensor) -> Tensor:
    return _norm(weights, norm, rearrange(flat, "b (m c) -> b m c", c=len(weights[f"{norm}.weight"])))


def _heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b n (h d) -> b h n d", h=heads)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    out = x @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def _norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
