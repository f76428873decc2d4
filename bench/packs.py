"""Other packs beside the bench: their checkouts in a folder, loaded as ComfyUI loads them. None is part of this pack.

What such a pack needs beside ComfyUI (diffusers, for example) must be installed where Python finds it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

SD3_PACK = "ComfyUI-InstantX-IPAdapter-SD3"
FLUX_PACK = "ComfyUI-IPAdapter-Flux"
HEAD = 64  # of SD3's networks


class PackRun:
    """A model on which another pack acts, and its modules that hold the adapter's weights."""

    def __init__(self, model: ModelPatcher, layers: nn.Module, projection: nn.Module | None = None) -> None:
        self.model, self.layers, self.projection = model, layers, projection


def load(folder: Path, name: str, module: str) -> ModuleType:
    """A module of a pack. Raises ImportError if it is not there, or if what it needs is not installed."""
    package = f"bench_{name.replace('-', '_')}"
    if package not in sys.modules:
        place = folder / name
        spec = importlib.util.spec_from_file_location(
            package, place / "__init__.py", submodule_search_locations=[str(place)]
        )
        if spec is None or spec.loader is None or not place.is_dir():
            raise ImportError(f"{place} is not there")
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{module}")


def sd3(folder: Path, model: ModelPatcher, file: Mapping[str, Mapping[str, Tensor]], hidden: Tensor) -> PackRun:
    """ComfyUI-InstantX-IPAdapter-SD3 with a nested file and the encoder's hidden states (1, n, width).

    Its loader only takes the released sizes, so its parts are made here in those of the file.
    """
    patch = load(folder, SD3_PACK, "nodes").patch
    resampler_class = load(folder, SD3_PACK, "models.resampler").TimeResampler
    layer_class = load(folder, SD3_PACK, "models.jointblock").IPAttnProcessor
    projection, layers = file["image_proj"], file["ip_adapter"]
    (context, dim), sines = projection["proj_out.weight"].shape, projection["time_embedding.linear_1.weight"].shape[1]
    inner = projection["layers.0.0.to_q.weight"].shape[0]
    resampler = resampler_class(
        dim=dim, depth=len({key for key in projection if key.endswith("to_q.weight")}), dim_head=HEAD,
        heads=inner // HEAD, num_queries=projection["latents"].shape[1], embedding_dim=hidden.shape[-1],
        output_dim=context, timestep_in_dim=sines,
    )  # fmt: skip
    resampler.load_state_dict(projection)
    count, width = len({key.split(".")[0] for key in layers}), layers["0.to_k_ip.weight"].shape[0]
    made = nn.ModuleList(
        layer_class(hidden_size=width, cross_attention_dim=context, ip_hidden_states_dim=context,
                    ip_encoder_hidden_states_dim=context, head_dim=HEAD, timesteps_emb_dim=dim)
        for _ in range(count)
    )  # fmt: skip
    made.load_state_dict(layers)
    steered = model.clone()
    patch(steered, made, resampler, torch.cat([hidden, torch.zeros_like(hidden)]), weight=0.7)
    return PackRun(steered, made, resampler)


def flux(folder: Path, model: ModelPatcher, file: Mapping[str, Mapping[str, Tensor]], tokens: Tensor) -> PackRun:
    """ComfyUI-IPAdapter-Flux with a nested file and the tokens (1, n, context) of a picture."""
    update = load(folder, FLUX_PACK, "utils").FluxUpdateModules
    layer_class = load(folder, FLUX_PACK, "attention_processor").IPAFluxAttnProcessor2_0
    layers, network = file["ip_adapter"], model.model.diffusion_model
    width, context = layers["0.to_k_ip.weight"].shape
    names = [f"double_blocks.{i}" for i in range(len(network.double_blocks))]
    names += [f"single_blocks.{i}" for i in range(len(network.single_blocks))]
    made = nn.ModuleList(
        layer_class(width, context, 0.7, tokens.shape[1], (1.0, 0.0)) for _ in names
    )  # fmt: skip
    made.load_state_dict(layers)
    steered = model.clone()
    update(steered, dict(zip(names, made, strict=True)), tokens, False)
    return PackRun(steered, made)
