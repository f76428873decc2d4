"""Makes an IP-Adapter of a file, or of what another pack loaded, and finds its layers in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import comfy.lora
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...engine.dit.families import unwrapped
from ...engine.loading import flatten, load_network
from ...engine.sites import Site
from ...engine.unet import Transformer, find_transformers, unet_of
from ...models.ip_adapter.files import take_apart
from ...models.ip_adapter.siglip import take_out_head
from ...models.ip_adapter.weights import LayerWeight, TransformerPlace
from .prompt import IPAdapter, SiteWeight
from .transformer_match import transformer_sites

FOREIGN = "the connected IPADAPTER"
REASON = "The image acts in the text attentions of the UNet that its file was trained for."


def with_pooling(adapter: IPAdapter, encoder: Mapping[str, Tensor], name: str) -> IPAdapter:
    """Returns an adapter with the pooling head of an encoder's file called `name`.

    Raises ValueError if the adapter needs none, or if the file has none of its width.
    """
    if adapter.kind.name != "pooled":
        raise ValueError(
            f"{adapter.name} needs no pooling head, for it reads what ComfyUI's image encoder gives. Set pooling_head "
            f"to none."
        )
    make, weights = take_out_head(encoder, name)
    width = weights["probe"].shape[-1]
    if width != adapter.kind.width:
        raise ValueError(
            f"{adapter.name} reads pictures pooled to {adapter.kind.width} numbers, but the head of {name} makes "
            f"{width}. Choose the file of {adapter.kind.encoder} as pooling_head."
        )
    return replace(adapter, pooling=load_network(make, weights, name))


def make_ip_adapter(weights: Mapping[str, Tensor], name: str, face_version: str = "auto") -> IPAdapter:
    """Returns an adapter whose weights belong to the host. Raises ValueError if the file is no IP-Adapter."""
    parts = take_apart(weights, name, face_version)
    return IPAdapter(
        name=name,
        fingerprint=_fingerprint(parts.projection),
        kind=parts.kind,
        projection=load_network(parts.make_projection, parts.projection, name),
        layers=load_network(parts.make_layers, parts.layers, name),
        sizes=parts.sizes,
        lora=parts.lora,
    )


def _fingerprint(projection: Mapping[str, Tensor]) -> str:
    """Returns a digest of the small tensors in half precision, which is the same for a file and its half-size copy."""
    digest = sha256()
    for key, value in sorted(projection.items()):
        if value.ndim < 2:
            digest.update(key.encode() + value.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def as_ip_adapter(adapter: Any) -> IPAdapter:
    """Returns an IP-Adapter as it is, or makes one of what the loaders of ComfyUI_IPAdapter_plus give.

    They give a state dict, or a pipe that holds one. Raises ValueError if there are no tensors of an IP-Adapter.
    """
    if isinstance(adapter, IPAdapter):
        return adapter
    pipe = adapter if isinstance(adapter, Mapping) else {}
    loaded = (pipe.get("ipadapter") or {}) if "ipadapter" in pipe else {"model": pipe}
    inner = loaded.get("model")
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(
            f"ipadapter should come from Load IP-Adapter, or hold the tensors of an IP-Adapter file, but holds "
            f"{type(adapter).__name__}. Connect an IP-Adapter loader that has loaded a file."
        )
    # That pack notes what it reads from the file's name in entries that are no tensors.
    weights = {key: value for key, value in flatten(inner).items() if isinstance(value, Tensor)}
    name = Path(loaded.get("file") or FOREIGN).name
    unpacked = make_ip_adapter(weights, name, "v2" if inner.get("faceidplusv2") else "auto")
    return replace(unpacked, clip_vision=(pipe.get("clipvision") or {}).get("model"))


def places_of(adapter: IPAdapter, model: ModelPatcher) -> list[TransformerPlace]:
    """Returns where the layers of a file are in a model, in execution order, in which weight types count them.

    Raises ValueError if the model has another kind of network.
    """
    if adapter.kind.form != "unet":
        return list(dict.fromkeys(TransformerPlace(*site[1:3]) for site in transformer_sites(adapter, model)))
    network = unwrapped(model.get_model_object("diffusion_model"))
    if not isinstance(network, UNetModel):
        raise ValueError(
            f"{adapter.name} was made for a UNet with {_described(adapter.sizes)}, but the model is "
            f"{type(model.model).__name__} ({type(network).__name__}). Choose a file that was made for it: there are "
            f"some for Stable Diffusion 3.5 Large and Flux."
        )
    blocks = find_transformers(network)
    return list(dict.fromkeys(TransformerPlace(block.block, block.number) for block in blocks))


def in_file_order(transformers: Sequence[Transformer]) -> list[Transformer]:
    """Returns transformers as diffusers numbers them: those of all down blocks, of all up blocks, of the middle."""
    return sorted(transformers, key=lambda transformer: ("input", "output", "middle").index(transformer.block))


def match_layers(
    adapter: IPAdapter, model: ModelPatcher, weights: Mapping[TransformerPlace, LayerWeight]
) -> dict[Site, SiteWeight]:
    """Returns the model's attentions that have a weight. Raises ValueError if the file is for another model."""
    if adapter.kind.form != "unet":
        return {
            site: SiteWeight(number, weights[site[1:3]])
            for number, site in enumerate(transformer_sites(adapter, model))
            if site[1:3] in weights
        }
    return {
        block.site("attn2"): SiteWeight(number, weights[block.block, block.number])
        for number, block in enumerate(_matching_transformers(adapter, model))
        if (block.block, block.number) in weights
    }


def _matching_transformers(adapter: IPAdapter, model: ModelPatcher) -> Sequence[Transformer]:
    transformers = in_file_order(find_transformers(unet_of(model, REASON)))
    sizes = [(transformer.width, transformer.context) for transformer in transformers]
    if sizes != list(adapter.sizes):
        raise ValueError(
            f"{adapter.name} was made for {_described(adapter.sizes)}, but the model has {_described(sizes)}. Choose "
            f"an IP-Adapter that was made for this kind of model."
        )
    return transformers


def narrowed(adapter: IPAdapter, model: ModelPatcher, *tokens: Tensor) -> tuple[Tensor, ...]:
    """Returns tokens (b, n, c) in the width that the layers read. A Kolors model narrows them as it does its text.

    Raises ValueError if the model cannot narrow them.
    """
    width = adapter.sizes[0][1]
    if adapter.kind.context == width or adapter.kind.form != "unet":
        return tokens
    narrow = getattr(unet_of(model, REASON), "encoder_hid_proj", None)
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
    """Returns a clone with the LoRA of a FaceID file as weight patches of the host.

    If several nodes have one file, as for two people in a picture, the first node alone adds the LoRA.
    Raises ValueError if the LoRA does not fit the model.
    """
    mark = f"reins_lora_{adapter.fingerprint}"
    if model.get_attachment(mark) is not None:
        return model
    unet = unet_of(model, REASON)
    targets = {
        f"{2 * number + offset}.{lora}": f"{transformer.path}.{kind}.{matrix}"
        for number, transformer in enumerate(_matching_transformers(adapter, model))
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
