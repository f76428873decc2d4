"""IP-Adapter files for diffusion transformers, known by their content: Stable Diffusion 3.5 and Flux.

InstantX's files have the two groups of all IP-Adapters. XLabs' file spells them otherwise.
"""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor

from .kinds import LAYERS, PROJECTION, TRAINED_WITH, AdapterParts, Kind, Weights, check_all_known, group
from .network import HEAD, FaceProjection, LinearProjection
from .time_resampler import TimeResampler
from .transformer_layers import FluxLayers, SD3Layers

XLABS_PROJECTION = "ip_adapter_proj_model."
XLABS_LAYER = re.compile(r"double_blocks\.([0-9]{1,4})\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)")
XLABS_FIRST = "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"
# Parts of the resampler's layers in the copy of InstantX's file for diffusers, and their names in the original.
OF_DIFFUSERS = {
    "ln0.": "0.norm1.", "ln1.": "0.norm2.", "attn.to_q.": "0.to_q.", "attn.to_kv.": "0.to_kv.",
    "attn.to_out.0.": "0.to_out.", "adaln_norm.": "1.0.", "ff.net.0.proj.": "1.1.", "ff.net.2.": "1.3.",
    "adaln_proj.": "2.1.",
}  # fmt: skip
NUMBERED = re.compile(r"([0-9]{1,4})\.to_k_ip\.weight")
RESAMPLER_LAYER = re.compile(r"(layers\.[0-9]{1,4}\.)(.+?)(weight|bias)")
SD3 = "Stable Diffusion 3.5 (InstantX)"
XLABS = "Flux (XLabs)"
INSTANTX = "Flux (InstantX)"


def transformer_parts(weights: Weights, name: str) -> AdapterParts | None:
    """The parts of a file called `name`. None if it is not for a transformer.

    Raises ValueError if it is for one, but lacks what tells its sizes, or has tensors that no such file has.
    """
    projection, layers = group(weights, PROJECTION), group(weights, LAYERS)
    if any(XLABS_LAYER.fullmatch(key) or key.startswith(XLABS_PROJECTION) for key in weights):
        check_all_known(weights, ("double_blocks.", XLABS_PROJECTION), name)
        return _xlabs(weights, name)
    is_sd3 = any(".norm_ip." in key for key in layers) or any(key.startswith("time_embedding.") for key in projection)
    if not is_sd3 and not _counts_from_zero(layers):
        return None
    check_all_known(weights, (*PROJECTION, *LAYERS, *TRAINED_WITH), name)
    return _sd3(_original(projection, name), layers, name) if is_sd3 else _instantx(projection, layers, name)


def _counts_from_zero(layers: Weights) -> bool:
    """Whether each attention has a number. A UNet's file has odd numbers alone.

    The first number may be missing, and a UNet's file may have a number too many. So most numbers tell.
    """
    numbers = [int(found[1]) for key in layers if (found := NUMBERED.fullmatch(key))]
    even = sum(number % 2 == 0 for number in numbers)
    return "0.to_k_ip.weight" in layers or "0.to_v_ip.weight" in layers or 0 < len(numbers) <= 2 * even


def _original(projection: Weights, name: str) -> dict[str, Tensor]:
    """The tensors of a resampler under the names of InstantX's original.

    Raises ValueError if one is there under both names.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in projection.items():
        found = RESAMPLER_LAYER.fullmatch(key)
        is_copy = found is not None and found[2] in OF_DIFFUSERS
        original = f"{found[1]}{OF_DIFFUSERS[found[2]]}{found[3]}" if is_copy else key
        if is_copy and original in projection:
            raise ValueError(
                f"{name} holds image_proj.{original} and image_proj.{key}, which are two names of one tensor. The "
                f"parts are of different files; download it again."
            )
        renamed[original] = value
    return renamed


def _sd3(projection: Weights, layers: Weights, name: str) -> AdapterParts:
    _, tokens, dim = _shape(projection, "latents", 3, f"image_proj of {name}", SD3)
    context, _ = _shape(projection, "proj_out.weight", 2, f"image_proj of {name}", SD3)
    _, width = _shape(projection, "proj_in.weight", 2, f"image_proj of {name}", SD3)
    inner, _ = _shape(projection, "layers.0.0.to_q.weight", 2, f"image_proj of {name}", SD3)
    _, sines = _shape(projection, "time_embedding.linear_1.weight", 2, f"image_proj of {name}", SD3)
    hidden, _ = _shape(layers, "0.to_k_ip.weight", 2, f"ip_adapter of {name}", SD3)
    (d,) = _shape(layers, "0.norm_q.weight", 1, f"ip_adapter of {name}", SD3)
    count = _count(layers, "ip_adapter.", "", ".to_k_ip.weight", name)
    depth = _count(projection, "image_proj.", "layers.", ".0.to_q.weight", name)
    if inner % HEAD:
        raise ValueError(
            f"{name}: the heads of its projection should have {HEAD} numbers each, but it has {inner} in all. Download "
            f"the file again."
        )
    if d != HEAD or hidden % HEAD:
        raise ValueError(
            f"{name}: the heads of its attentions should have {HEAD} numbers each, as those of Stable Diffusion 3.5 "
            f"have, but ip_adapter.0.norm_q has {d}, and ip_adapter.0.to_k_ip makes {hidden}. Download the file again."
        )
    if sines % 2:
        raise ValueError(
            f"{name}: image_proj.time_embedding.linear_1 should read as many sines as cosines of the time, but it "
            f"reads {sines} numbers. Download the file again."
        )
    return AdapterParts(
        kind=Kind("timed", tokens, width, "penultimate_hidden_states", width, form="sd3"),
        make_projection=partial(TimeResampler, width, tokens, dim, inner, context, depth=depth, sines=sines),
        projection=dict(projection), layers=dict(layers),
        make_layers=partial(SD3Layers, count, hidden, context, dim, d), sizes=[(hidden, context)] * count, lora={},
    )  # fmt: skip


def _xlabs(weights: Weights, name: str) -> AdapterParts:
    projection = group(weights, (XLABS_PROJECTION,))
    layers = {
        f"{found[1]}.to_{found[2]}_ip.{found[3]}": value
        for key, value in weights.items()
        if (found := XLABS_LAYER.fullmatch(key))
    }
    check_all_known({key: key for key in weights if not XLABS_LAYER.fullmatch(key)}, (XLABS_PROJECTION,), name)
    whole, width = _shape(projection, "proj.weight", 2, f"{XLABS_PROJECTION}* of {name}", XLABS)
    (context,) = _shape(projection, "norm.weight", 1, f"{XLABS_PROJECTION}* of {name}", XLABS)
    hidden, _ = _shape(weights, XLABS_FIRST, 2, name, XLABS)
    tokens, count = whole // context, _count(layers, "double_blocks.", "", ".to_k_ip.weight", name)
    return AdapterParts(
        kind=Kind("linear", tokens, context, "image_embeds", width, form="xlabs"),
        make_projection=partial(LinearProjection, width, tokens, context),
        projection=projection, layers=layers,
        make_layers=partial(FluxLayers, count, hidden, context, is_normed=False),
        sizes=[(hidden, context)] * count, lora={},
    )  # fmt: skip


def _instantx(projection: Weights, layers: Weights, name: str) -> AdapterParts:
    inner, width = _shape(projection, "proj.0.weight", 2, f"image_proj of {name}", INSTANTX)
    whole, _ = _shape(projection, "proj.2.weight", 2, f"image_proj of {name}", INSTANTX)
    (context,) = _shape(projection, "norm.weight", 1, f"image_proj of {name}", INSTANTX)
    hidden, _ = _shape(layers, "0.to_k_ip.weight", 2, f"ip_adapter of {name}", INSTANTX)
    tokens, count = whole // context, _count(layers, "ip_adapter.", "", ".to_k_ip.weight", name)
    return AdapterParts(
        kind=Kind("pooled", tokens, context, "image_embeds", width, form="instantx"),
        make_projection=partial(FaceProjection, width, inner, tokens, context),
        projection=dict(projection), layers=dict(layers),
        make_layers=partial(FluxLayers, count, hidden, context, is_normed=True),
        sizes=[(hidden, context)] * count, lora={},
    )  # fmt: skip


def _count(weights: Weights, part: str, prefix: str, suffix: str, name: str) -> int:
    """How many layers there are: numbers between a prefix and a suffix. Raises ValueError if some are left out."""
    pattern = re.compile(rf"{re.escape(prefix)}(0|[1-9][0-9]{{0,3}}){re.escape(suffix)}")
    numbers = {int(found[1]) for key in weights if (found := pattern.fullmatch(key))}
    missing = sorted(set(range(len(numbers))) - numbers)
    if missing:
        raise ValueError(
            f"{name} is incomplete: its layers should have the numbers 0 to {max(numbers)} without a gap, but it "
            f"lacks {part}{prefix}{missing[0]}. Download the file again."
        )
    return len(numbers)


def _shape(weights: Weights, key: str, ndim: int, part: str, kind: str) -> tuple[int, ...]:
    """The shape of a tensor that tells a size.

    Raises ValueError if there is no such tensor, or if it has another number of axes or no numbers.
    """
    found: Tensor | None = weights.get(key)
    if found is None or found.ndim != ndim or not found.numel():
        holds = "is missing" if found is None else f"is {tuple(found.shape)}"
        raise ValueError(
            f"{part} should hold {key} with {ndim} axes, as an IP-Adapter for {kind} has it, but it {holds}. Download "
            f"the file again."
        )
    return tuple(found.shape)
