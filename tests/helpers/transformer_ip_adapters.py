"""Files of IP-Adapters for diffusion transformers, tiny and drawn, or of the released sizes without memory.

Names and shapes are those of InstantX/SD3.5-Large-IP-Adapter, XLabs-AI/flux-ip-adapter and
InstantX/FLUX.1-dev-IP-Adapter. A nested file is flattened with dots. Defaults fit `tiny_transformers`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

HEAD = 64  # width of a head in SD3's networks and in the resampler of its adapter
TIMES = 32  # numbers that tell the tiny resampler a timestep; the released one has 320
Shapes = dict[str, tuple[int, ...]]

# Parts of a block of the released SD3.5 file, and their names in its copy for diffusers, which is released too.
IN_DIFFUSERS = {
    "0.norm1": "ln0", "0.norm2": "ln1", "0.to_q": "attn.to_q", "0.to_kv": "attn.to_kv", "0.to_out": "attn.to_out.0",
    "1.0": "adaln_norm", "1.1": "ff.net.0.proj", "1.3": "ff.net.2", "2.1": "adaln_proj",
}  # fmt: skip
BLOCK = re.compile(r"(image_proj\.layers\.\d+)\.(.+)\.(weight|bias)")

# Added to the scales of weights, so that each adapter is a clear part of the prediction.
GAINS = {
    "to_q.": 2.0, "to_kv.": 1.5, "to_k_ip.": 2.0, "to_v_ip.": 1.5, "k_proj.": 3.0, "v_proj.": 0.3, "_1.": 2.0,
}  # fmt: skip


def sd3_file(
    seed: int = 0, layers: int = 2, hidden: int = 128, width: int = 20, tokens: int = 6, dim: int = 48, depth: int = 2
) -> dict[str, Tensor]:  # fmt: skip
    """A file in InstantX's form for SD3.5, with `layers` attentions.

    `hidden` is the width of the network, `width` that of the encoder's hidden states, `dim` that of the resampler,
    which makes so many `tokens` by so many blocks, `depth`.
    """
    inner = 2 * HEAD  # another width than dim
    return _drawn(_sd3(layers, hidden, width, (tokens, dim, inner, depth, TIMES)), seed)


def xlabs_file(
    seed: int = 0, blocks: int = 2, hidden: int = 32, context: int = 16, tokens: int = 4, width: int = 12
) -> dict[str, Tensor]:  # fmt: skip
    """A file in XLabs' form for Flux, with `blocks` double blocks.

    `hidden` is the width of the network, `context` that of its texts, `width` that of the encoder's embeddings.
    """
    return _drawn(_xlabs(blocks, hidden, context, tokens, width), seed)


def instantx_flux_file(
    seed: int = 0, double: int = 2, single: int = 2, hidden: int = 32, context: int = 16, tokens: int = 6,
    width: int = 12,
) -> dict[str, Tensor]:  # fmt: skip
    """A file in InstantX's form for Flux, with a layer for each double block and then for each single block.

    `hidden` is the width of the network, `context` that of its texts, `width` that of the encoder's pooled output.
    """
    return _drawn(_instantx_flux(double + single, hidden, context, tokens, width), seed)


def full_size(name: str) -> dict[str, Tensor]:
    """The tensors of a released file on the meta device: sd3, xlabs, xlabs v2 or instantx flux."""
    shapes = {
        "sd3": _sd3(38, 2432, 1152, (64, 1280, 1280, 4, 320)),
        "xlabs": _xlabs(19, 3072, 4096, 4, 768),
        "xlabs v2": _xlabs(19, 3072, 4096, 16, 768),
        "instantx flux": _instantx_flux(57, 3072, 4096, 128, 1152),
    }[name]
    return {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in shapes.items()}


def in_diffusers_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an SD3.5 file under the names of its copy for diffusers (ip-adapter_diffusers.safetensors)."""
    return {_in_diffusers(key): value for key, value in weights.items()}


def _in_diffusers(key: str) -> str:
    match = BLOCK.fullmatch(key)
    return f"{match[1]}.{IN_DIFFUSERS[match[2]]}.{match[3]}" if match else key


def nested(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The two groups of a file of InstantX, as the released .bin has them."""
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        group, name = key.split(".", 1)
        groups[group][name] = value
    return groups


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values of all tensors, in the order of their names."""
    return hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights))).hexdigest()


def _sd3(layers: int, hidden: int, width: int, resampler: tuple[int, int, int, int, int]) -> Shapes:
    tokens, dim, inner, depth, times = resampler
    shapes: Shapes = {
        "image_proj.latents": (1, tokens, dim),
        **_linear("image_proj.proj_in", dim, width),
        **_linear("image_proj.proj_out", hidden, dim),
        **_norm("image_proj.norm_out", hidden),
        **_linear("image_proj.time_embedding.linear_1", dim, times),
        **_linear("image_proj.time_embedding.linear_2", dim, dim),
    }
    for i in range(depth):
        block = f"image_proj.layers.{i}"
        shapes |= {
            **_norm(f"{block}.0.norm1", dim),
            **_norm(f"{block}.0.norm2", dim),
            f"{block}.0.to_q.weight": (inner, dim),
            f"{block}.0.to_kv.weight": (2 * inner, dim),
            f"{block}.0.to_out.weight": (dim, inner),
            **_norm(f"{block}.1.0", dim),
            f"{block}.1.1.weight": (4 * dim, dim),
            f"{block}.1.3.weight": (dim, 4 * dim),
            **_linear(f"{block}.2.1", 4 * dim, dim),
        }
    for i in range(layers):
        shapes |= {
            **_linear(f"ip_adapter.{i}.norm_ip.linear", 2 * hidden, dim),
            f"ip_adapter.{i}.to_k_ip.weight": (hidden, hidden),
            f"ip_adapter.{i}.to_v_ip.weight": (hidden, hidden),
            **{f"ip_adapter.{i}.{norm}.weight": (HEAD,) for norm in ("norm_q", "norm_k", "norm_ip_k")},
        }
    return shapes


def _xlabs(blocks: int, hidden: int, context: int, tokens: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(blocks):
        for part in "kv":
            shapes |= _linear(f"double_blocks.{i}.processor.ip_adapter_double_stream_{part}_proj", hidden, context)
    return {
        **shapes,
        **_linear("ip_adapter_proj_model.proj", tokens * context, width),
        **_norm("ip_adapter_proj_model.norm", context),
    }


def _instantx_flux(layers: int, hidden: int, context: int, tokens: int, width: int) -> Shapes:
    return {
        **_linear("image_proj.proj.0", 2 * width, width),
        **_linear("image_proj.proj.2", tokens * context, 2 * width),
        **_norm("image_proj.norm", context),
        **{f"ip_adapter.{i}.to_{part}_ip.weight": (hidden, context) for i in range(layers) for part in "kv"},
    }


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _drawn(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    return dict(_draw(shapes, torch.Generator().manual_seed(seed)))


def _draw(shapes: Shapes, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Matrices by their fan-in, gains about one, and biases that show."""
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            gain = next((gain for part, gain in GAINS.items() if part in key), 1.0)
            yield key, noise * gain / shape[1] ** 0.5
        elif len(shape) == 3:
            yield key, noise
        else:
            yield key, 1.0 + 0.3 * noise if key.endswith("weight") else 0.2 * noise
