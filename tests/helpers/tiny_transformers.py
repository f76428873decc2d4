"""Tiny, seeded diffusion transformers of the host's own classes, on the CPU. Every weight is random and not zero.

sd3, sd35m, flux, flux2, chroma, lumina, zimage, hidream and aura take latents of pictures, (b, c, h, w). qwen, wan,
hunyuan_video, predict2 and ltxv take latents with a time axis, (b, c, t, h, w). pixart is here to be refused,
and takes no latents with sides below 33 cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib import import_module

import comfy.model_base
import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

CPU = torch.device("cpu")
WIDTH, TOKENS, POOLED, LLAMA_LAYERS = 16, 5, 8, 3
VIDEO = {"qwen": 1, "wan": 3, "hunyuan_video": 3, "predict2": 1, "ltxv": 3}  # frames of the latents of `latent`
COUNTED = ("lumina", "zimage", "ltxv")  # the host counts the tokens of their texts by a mask
QUERIES = ("qkv", "to_q.", "to_k.", "q_proj", "k_proj", "w1q", "w1k", "w2q", "w2k", "linear1", ".q.weight", ".k.weight")
GATES = (".modC", ".modX", "_mod.1.")  # of AuraFlow and Qwen, whose texts hardly show without a gain
FACTORS = ("weight", "scale")  # ends of the names of vectors that norms multiply by, on newer and older hosts
BUFFERS = ("pos_embed", "pad_token")  # which the host leaves uninitialised

_FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": WIDTH, "hidden_size": 32,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX2 = {
    "in_channels": 128, "out_channels": 128, "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1,
    "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "ref_index_scale": 10.0,
    "default_ref_method": "index", "txt_ids_dims": [3], "vec_in_dim": None,
}  # fmt: skip
_SD3 = {
    "input_size": None, "patch_size": 2, "in_channels": 16, "depth": 2, "num_blocks": 3, "adm_in_channels": POOLED,
    "pos_embed_max_size": 16, "num_patches": 256, "qk_norm": "rms", "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
}  # fmt: skip
_LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 48, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 1,
    "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [300, 512, 512], "multiple_of": 16,
    "ffn_dim_multiplier": 2.0,
}  # fmt: skip
_ZIMAGE = {
    "dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32, "rope_theta": 256.0,
}  # fmt: skip
_CHROMA = {
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32, "hidden_dim": 48, "n_layers": 2,
}  # fmt: skip
_QWEN = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
_WAN = {
    "model_type": "t2v", "patch_size": (1, 2, 2), "in_dim": 16, "dim": 24, "ffn_dim": 48, "freq_dim": 32,
    "text_dim": WIDTH, "out_dim": 16, "num_heads": 2, "num_layers": 3,
}  # fmt: skip
_HIDREAM = {
    "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6], "caption_channels": [WIDTH, WIDTH],
    "max_resolution": [128, 128], "in_channels": 16, "llama_layers": list(range(LLAMA_LAYERS)),
    "num_attention_heads": 2, "num_routed_experts": 2, "num_activated_experts": 1, "num_layers": 1,
    "num_single_layers": 2, "out_channels": 16, "patch_size": 2, "text_emb_dim": POOLED,
}  # fmt: skip
_AURA = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 32, "n_layers": 3, "n_double_layers": 1, "n_heads": 2,
    "global_conddim": 32, "cond_seq_dim": WIDTH, "max_seq": 256,
}  # fmt: skip
_HUNYUAN = {
    "patch_size": [1, 2, 2], "depth": 1, "theta": 256, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_PREDICT2 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 48, "concat_padding_mask": True, "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
    "use_adaln_lora": True, "adaln_lora_dim": 8, "num_blocks": 3, "num_heads": 3, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
}  # fmt: skip
_LTXV = {
    "in_channels": 128, "cross_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2,
    "caption_channels": WIDTH, "num_layers": 3,
}  # fmt: skip
_PIXART = {
    "input_size": 32, "pe_interpolation": 1, "in_channels": 4, "hidden_size": 32, "num_heads": 2, "depth": 3,
    "caption_channels": WIDTH, "micro_condition": False, "model_max_length": 300, "patch_size": 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """The host's names of a family and the settings of its smallest network.

    `supported` is a class of `comfy.supported_models`, `base` one of `comfy.model_base`. `settings` is the dataclass
    of the host that takes the settings, as `module:class`; it knows other fields on other hosts.
    """

    supported: str
    base: str
    image_model: str
    network: dict
    settings: str = ""

    def config(self, changes: dict) -> dict:
        """The settings of the network that this host knows."""
        config = {**self.network, **changes}
        if self.settings:
            module, name = self.settings.split(":")
            known = {field.name for field in dataclasses.fields(getattr(import_module(module), name))}
            config = {key: value for key, value in config.items() if key in known}
        named = {"image_model": self.image_model} if self.image_model else {}
        return {"dtype": torch.float32, **config, **named}


FAMILIES = {
    "sd3": Family("SD3", "SD3", "", _SD3),
    "sd35m": Family("SD3", "SD3", "", {**_SD3, "x_block_self_attn_layers": [0, 1]}),
    "flux": Family("Flux", "Flux", "flux", _FLUX, "comfy.ldm.flux.model:FluxParams"),
    "flux2": Family("Flux2", "Flux2", "flux2", {**_FLUX, **_FLUX2}, "comfy.ldm.flux.model:FluxParams"),
    "chroma": Family("Chroma", "Chroma", "chroma", {**_FLUX, **_CHROMA}, "comfy.ldm.chroma.model:ChromaParams"),
    "qwen": Family("QwenImage", "QwenImage", "qwen_image", _QWEN),
    "wan": Family("WAN21_T2V", "WAN21", "wan2.1", _WAN),
    "lumina": Family("Lumina2", "Lumina2", "lumina2", _LUMINA),
    "zimage": Family("ZImage", "Lumina2", "lumina2", {**_LUMINA, **_ZIMAGE}),
    "hidream": Family("HiDream", "HiDream", "hidream", _HIDREAM),
    "aura": Family("AuraFlow", "AuraFlow", "", _AURA),
    "hunyuan_video": Family(
        "HunyuanVideo", "HunyuanVideo", "hunyuan_video", {**_FLUX, **_HUNYUAN},
        "comfy.ldm.hunyuan_video.model:HunyuanVideoParams",
    ),
    "predict2": Family("CosmosT2IPredict2", "CosmosPredict2", "cosmos_predict2", _PREDICT2),
    "ltxv": Family("LTXV", "LTXV", "ltxv", _LTXV),
    "pixart": Family("PixArtSigma", "PixArt", "pixart_sigma", _PIXART),
}  # fmt: skip


def on_this_host(family: str) -> bool:
    """Whether the host has this family."""
    names = FAMILIES[family]
    return hasattr(comfy.supported_models, names.supported) and hasattr(comfy.model_base, names.base)


def make(family: str, seed: int = 0, **changes: object) -> ModelPatcher:
    """A model of the family with some settings changed, its weights drawn. Skips the test if the host lacks it."""
    if not on_this_host(family):
        pytest.skip(f"this ComfyUI has no {FAMILIES[family].supported}")
    names = FAMILIES[family]
    network = names.config(changes)
    config = getattr(comfy.supported_models, names.supported)(dict(network))
    config.unet_config = network  # undo what the family changes in it
    model = getattr(comfy.model_base, names.base)(config, device=CPU)
    model.diffusion_model.eval().requires_grad_(False)
    randomise(model.diffusion_model, seed)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


MODELS: dict[str, Callable[..., ModelPatcher]] = {family: partial(make, family) for family in FAMILIES}
PICTURES = tuple(family for family in FAMILIES if family not in (*VIDEO, "pixart"))
GUIDED = (*PICTURES, *VIDEO)  # the families that guidance takes


def randomise(network: nn.Module, seed: int) -> None:
    """Fill every parameter in name order, with queries and keys that are large enough to tell tokens apart."""
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)]
    matrices = {id(layer.weight) for layer in layers}
    uninitialised = [pair for pair in network.named_buffers() if pair[0] in BUFFERS]
    with torch.no_grad():
        for name, p in sorted([*network.named_parameters(), *uninitialised], key=lambda pair: pair[0]):
            drawn = torch.randn(p.shape, generator=generator)
            if id(p) in matrices:
                gains = ((2.0, QUERIES), (4.0, GATES))
                gain = next((gain for gain, parts in gains if any(part in name for part in parts)), 1.0)
                p.copy_(drawn * gain / p[0].numel() ** 0.5)
            elif p.ndim > 1 and "norm" not in name:
                p.copy_(0.3 * drawn)
            else:
                p.copy_(1.0 + 0.1 * drawn if name.endswith(FACTORS) else 0.1 * drawn)


def text(seed: int, tokens: int = TOKENS, family: str = "", **extra: object) -> list:
    """A conditioning for the family as nodes hand it around."""
    generator = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn((1, POOLED), generator=generator), **extra}
    if family == "hidream":
        options["conditioning_llama3"] = torch.randn((1, LLAMA_LAYERS, tokens, WIDTH), generator=generator)
    if family in COUNTED:
        options["attention_mask"] = torch.ones((1, tokens), dtype=torch.long)
    return [[torch.randn((1, tokens, WIDTH), generator=generator), options]]


def latent(family: str, h: int = 8, w: int = 12, batch: int = 1, frames: int | None = None) -> Tensor:
    """An empty latent (b, c, h, w), or (b, c, t, h, w) for a family in VIDEO, with `frames` as t."""
    channels = getattr(comfy.supported_models, FAMILIES[family].supported).latent_format.latent_channels
    time = [frames or VIDEO[family]] if family in VIDEO else []
    return torch.zeros((batch, channels, *time, h, w))


def noise_like(latent: Tensor, seed: int = 7) -> Tensor:
    """Seeded noise in the shape of a latent."""
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def sample(
    family: str, model: ModelPatcher, cfg: float = 4.0, steps: int = 2, h: int = 8, w: int = 12, batch: int = 1,
    positive: list | None = None, negative: list | None = None, frames: int | None = None, sampler: str = "euler",
    seed: int = 7, start: Tensor | None = None, **extra: object,
) -> Tensor:  # fmt: skip
    """A run of the host's KSampler from seeded noise, or from the noise `start`."""
    empty = latent(family, h, w, batch, frames)
    return comfy.sample.sample(
        model, noise_like(empty, seed) if start is None else start, steps, cfg, sampler, "normal",
        text(1, family=family) if positive is None else positive,
        text(2, family=family) if negative is None else negative, empty, seed=seed, disable_pbar=True, **extra,
    )  # fmt: skip
