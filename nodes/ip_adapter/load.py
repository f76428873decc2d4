"""From a file, or from what another pack loaded, to an IP-Adapter; and from that to a model's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import comfy.lora
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...engine.loading import flatten, load_network
from ...engine.unet import Site, Transformer, find_transformers, unet_of
from ...models.ip_adapter.files import take_apart
from ...models.ip_adapter.network import ImageLayers
from ...models.ip_adapter.weights import LayerWeight, TransformerPlace
from .attention import IPAdapter, SiteWeight

FOREIGN = "the connected IPADAPTER"


def make_ip_adapter(weights: Mapping[str, Tensor], name: str, face_version: str = "auto") -> IPAdapter:
    """An adapter whose weights belong to the host. ValueError that names what does not fit."""
    parts = take_apart(weights, name, face_version)
    return IPAdapter(
        name=name,
        fingerprint=_fingerprint(parts.projection),
        kind=parts.kind,
        projection=load_network(parts.make_projection, parts.projection, name),
        layers=load_network(partial(ImageLayers, parts.sizes), parts.layers, name),
        sizes=parts.sizes,
        lora=parts.lora,
    )


def _fingerprint(projection: Mapping[str, Tensor]) -> str:
    """Of the small tensors, in half precision: the same for a file and its half-size copy."""
    digest = sha256()
    for key, value in sorted(projection.items()):
        if value.ndim < 2:
            digest.update(key.encode() + value.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def as_ip_adapter(found: Any) -> IPAdapter:
    """Ours as it is; the socket of the widely used pack, a pipe or a bare state dict, taken apart. ValueError."""
    if isinstance(found, IPAdapter):
        return found
    pipe = found if isinstance(found, Mapping) else {}
    loaded = (pipe.get("ipadapter") or {}) if "ipadapter" in pipe else {"model": pipe}
    inner = loaded.get("model")
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(
            f"ipadapter should come from Load IP-Adapter, or hold the tensors of an IP-Adapter file, but holds "
            f"{type(found).__name__}. Connect an IP-Adapter loader that has loaded a file."
        )
    # That pack marks what it knows by the file's name, with entries that are no tensors.
    weights = {key: value for key, value in flatten(inner).items() if isinstance(value, Tensor)}
    name = Path(loaded.get("file") or FOREIGN).name
    adapter = make_ip_adapter(weights, name, "v2" if inner.get("faceidplusv2") else "auto")
    return replace(adapter, clip_vision=(pipe.get("clipvision") or {}).get("model"))


def places_of(model: ModelPatcher) -> list[TransformerPlace]:
    """Where a model has transformers, in execution order: the numbers of weight types."""
    return list(
        dict.fromkeys(TransformerPlace(found.block, found.number) for found in find_transformers(unet_of(model)))
    )


def in_file_order(found: Sequence[Transformer]) -> list[Transformer]:
    """As diffusers numbers attention processors: all down blocks, all up blocks, then the middle."""
    return sorted(found, key=lambda one: ("input", "output", "middle").index(one.block))


def match_layers(
    adapter: IPAdapter, model: ModelPatcher, weights: Mapping[TransformerPlace, LayerWeight]
) -> dict[Site, SiteWeight]:
    """The model's text attentions that have a weight. ValueError if the file was made for another model."""
    return {
        found.site("attn2"): SiteWeight(number, weights[found.block, found.number])
        for number, found in enumerate(_checked(adapter, model))
        if (found.block, found.number) in weights
    }


def _checked(adapter: IPAdapter, model: ModelPatcher) -> Sequence[Transformer]:
    found = in_file_order(find_transformers(unet_of(model)))
    sizes = [(one.width, one.context) for one in found]
    if sizes != list(adapter.sizes):
        raise ValueError(
            f"{adapter.name} was made for {_described(adapter.sizes)}, but the model has {_described(sizes)}. Choose "
            f"an IP-Adapter that was made for this kind of model."
        )
    return found


def narrowed(adapter: IPAdapter, model: ModelPatcher, *tokens: Tensor) -> tuple[Tensor, ...]:
    """Tokens (b, n, c) as wide as the layers read. Kolors' own model makes them so, as it does its text."""
    width = adapter.sizes[0][1]
    if adapter.kind.context == width:
        return tokens
    narrow = getattr(unet_of(model), "encoder_hid_proj", None)
    if narrow is None or (narrow.in_features, narrow.out_features) != (adapter.kind.context, width):
        raise ValueError(
            f"{adapter.name} makes tokens {adapter.kind.context} wide, which a Kolors model narrows to {width} by its "
            f"encoder_hid_proj, but this model has none. Load Kolors with a loader that keeps it in the model."
        )
    weight, bias = (value.detach().to(tokens[0]) for value in (narrow.weight, narrow.bias))
    return tuple(functional.linear(part, weight, bias) for part in tokens)


def _described(sizes: Sequence[tuple[int, int]]) -> str:
    contexts = {768: " (SD1.5)", 1024: " (SD2)", 2048: " (SDXL)"}
    context = sizes[0][1] if sizes else 0
    widths = ", ".join(str(width) for width in sorted({width for width, _ in sizes}))
    return f"{len(sizes)} text attentions {widths} wide that read {context} numbers{contexts.get(context, '')}"


def add_lora(adapter: IPAdapter, model: ModelPatcher, strength: float) -> ModelPatcher:
    """A clone with the LoRA that a FaceID file holds, as the host's own weight patches. ValueError if it misfits.

    Several nodes with one file, as for two people in a picture, have one LoRA together: that of the first.
    """
    mark = f"reins_lora_{adapter.fingerprint}"
    if model.get_attachment(mark) is not None:
        return model
    unet = unet_of(model)
    targets = {
        f"{2 * number + offset}.{lora}": f"{one.path}.{kind}.{matrix}"
        for number, one in enumerate(_checked(adapter, model))
        for offset, kind in enumerate(("attn1", "attn2"))
        for lora, matrix in {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}.items()
    }
    content = {
        key.replace("_lora.down.", ".lora_down.").replace("_lora.up.", ".lora_up."): value
        for key, value in adapter.lora.items()
    }
    stems = sorted({key.rsplit(".", 2)[0] for key in content})
    misfits = [stem for stem in stems if stem not in targets or not _fits(content, stem, unet, targets[stem])]
    if misfits:
        raise ValueError(
            f"{adapter.name} holds a LoRA that does not fit the model: {', '.join(misfits[:3])} of {len(stems)} pairs. "
            f"Set lora_strength to 0 or choose another file."
        )
    patches = comfy.lora.load_lora(content, {stem: f"diffusion_model.{targets[stem]}.weight" for stem in stems})
    model = model.clone()
    model.add_patches(patches, strength)
    model.set_attachments(mark, strength)
    return model


def _fits(content: Mapping[str, Tensor], stem: str, unet: UNetModel, path: str) -> bool:
    up, down = content.get(f"{stem}.lora_up.weight"), content.get(f"{stem}.lora_down.weight")
    linear = unet.get_submodule(path)
    return (
        up is not None
        and down is not None
        and (up.shape[0], down.shape[1]) == (linear.out_features, linear.in_features)
        and up.shape[1] == down.shape[0]
    )
