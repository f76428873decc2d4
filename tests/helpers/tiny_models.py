"""Tiny, seeded UNets inside the real host, on the CPU, and ways to sample them. Every weight is random and not zero.

sd15: three resolutions with one transformer per block (inputs 1, 3, 5; middle; outputs 0 to 5).
sdxl: label embedding, linear projections, no transformer at full size, one and two below.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.cldm.cldm
import comfy.conds
import comfy.controlnet
import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH, TOKENS, POOLED = 16, 5, 8
CPU = torch.device("cpu")


def unet_config(**changes: object) -> dict:
    """The host's settings for the smallest SD1.5, with some of them changed."""
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1, 1],
        "channel_mult": [1, 1, 2], "num_heads": 4, "num_head_channels": -1, "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "legacy": False, "context_dim": WIDTH, "adm_in_channels": None,
        "transformer_depth": [1, 1, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1] * 6,
        "use_temporal_attention": False, "use_temporal_resblock": False, "dtype": torch.float32, **changes,
    }  # fmt: skip


SDXL = {
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": POOLED + 6 * 256,
    "transformer_depth": [0, 1, 2], "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 1, 1, 2, 2],
}  # fmt: skip


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fill every parameter in name order; peaky self-attention, so that perturbing it shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                gain = 2.5 if ".attn1.to_q." in name or ".attn1.to_k." in name else 1.0
                p.copy_(noise * gain / p[0].numel() ** 0.5)
            else:
                p.copy_(1.0 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)


def patcher_of(family: type, base: type, unet: dict, kind: ModelType, seed: int) -> ModelPatcher:
    """A model of a family of the host with this UNet, its weights drawn."""
    config = family(unet)
    config.unet_config = unet  # undo the family's own number of heads
    model = base(config, kind, device=CPU)
    model.diffusion_model.eval().requires_grad_(False)
    randomise(model.diffusion_model, seed)
    model.diffusion_model.to(unet["dtype"])
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def sd15(seed: int = 0, kind: ModelType = ModelType.EPS, **config: object) -> ModelPatcher:
    """A tiny SD1.5."""
    return patcher_of(comfy.supported_models.SD15, comfy.model_base.BaseModel, unet_config(**config), kind, seed)


def sd2(seed: int = 0, kind: ModelType = ModelType.V_PREDICTION, **config: object) -> ModelPatcher:
    """A tiny SD2: v-prediction, heads of equal width, linear projections."""
    unet = unet_config(use_linear_in_transformer=True, num_heads=-1, num_head_channels=16, **config)
    return patcher_of(comfy.supported_models.SD20, comfy.model_base.BaseModel, unet, kind, seed)


def sdxl(seed: int = 0, kind: ModelType = ModelType.EPS, **config: object) -> ModelPatcher:
    """A tiny SDXL."""
    return patcher_of(comfy.supported_models.SDXL, comfy.model_base.SDXL, unet_config(**SDXL, **config), kind, seed)


def text(seed: int, tokens: int = TOKENS, **extra: object) -> list:
    """A conditioning as nodes hand it around."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn((1, POOLED), generator=generator)
    return [[torch.randn((1, tokens, WIDTH), generator=generator), {"pooled_output": pooled, **extra}]]


def noise(h: int = 16, w: int = 16, b: int = 1, seed: int = 7) -> Tensor:
    """Seeded noise (b, 4, h, w)."""
    return torch.randn((b, 4, h, w), generator=torch.Generator().manual_seed(seed))


def sample(
    model: ModelPatcher, size: tuple[int, int] = (16, 16), batch: int = 1, cfg: float = 5.0, steps: int = 2,
    positive: list | None = None, negative: list | None = None, sampler: str = "euler", seed: int = 7,
    start: Tensor | None = None, **extra: object,
) -> Tensor:  # fmt: skip
    """A run of the host's KSampler from seeded noise."""
    latent = torch.zeros((batch, 4, *size))
    start = noise(*size, batch, seed) if start is None else start
    return comfy.sample.sample(
        model, start, steps, cfg, sampler, "normal", text(1) if positive is None else positive,
        text(2) if negative is None else negative, latent, seed=seed, disable_pbar=True, **extra,
    )  # fmt: skip


def guide(model: ModelPatcher, guider: object, size: tuple[int, int] = (16, 16), steps: int = 2) -> Tensor:
    """A run of SamplerCustomAdvanced's core with a guider of the host."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise(*size), torch.zeros((1, 4, *size)), sampler, sigmas, seed=7, disable_pbar=True)


def cond(embedding: Tensor, **extra: object) -> dict:
    """One conditioning as the sampling loop sees it, for `denoise`."""
    return {"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(embedding)}, "uuid": uuid.uuid4(), **extra}


def denoise(
    model: ModelPatcher, x: Tensor, sigma: float | Tensor, positive: list, negative: list | None, cfg: float
) -> Tensor:  # fmt: skip
    """One guided prediction, without a sampler and without the run of a guider; `sigma` may be per row.

    It has gradients if `x` needs them.
    """
    positive, negative = (_labelled(model, conds) for conds in (positive, negative))
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {"positive": positive, "negative": negative or []}, options)
    try:
        with torch.set_grad_enabled(x.requires_grad):
            sigmas = sigma if isinstance(sigma, Tensor) else torch.full((x.shape[0],), float(sigma))
            return comfy.samplers.sampling_function(model.model, x, sigmas, negative, positive, cfg, options)
    finally:
        model.cleanup()


def _labelled(model: ModelPatcher, conds: list | None) -> list | None:
    """The conds with the vector that a class-conditional network asks for."""
    width = model.model.adm_channels
    if conds is None or not width:
        return conds
    label = comfy.conds.CONDRegular(torch.linspace(-1, 1, width)[None])
    return [{**cond, "model_conds": {**cond["model_conds"], "y": label}} for cond in conds]


@contextmanager
def forwards(model: ModelPatcher) -> Iterator[list[int]]:
    """Rows of every call of the network inside the block."""
    rows: list[int] = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    try:
        yield rows
    finally:
        hook.remove()


class Operations(TorchDispatchMode):
    """Counts operations of torch inside the block. Kinds of it count some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def counts(self, func) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += self.counts(func)
        return func(*args, **(kwargs or {}))


class DeviceReads(Operations):
    """Counts reads of a number from a tensor inside the block: on a GPU each one waits for the device."""

    def counts(self, func) -> bool:
        return func is torch.ops.aten._local_scalar_dense.default


def per_step(kind: type[Operations], run: Callable[[int], object], first: int = 1) -> float:
    """Operations of a kind in each further step of `run`, which is given how many steps to take.

    The `first` steps have what is done once per run.
    """
    counts = []
    for steps in (first, first + 2):
        with kind() as operations:
            run(steps)
        counts.append(operations.count)
    return (counts[1] - counts[0]) / 2


def reads_per_step(run: Callable[[int], object]) -> float:
    """Numbers read from the device in each further step of `run`, which is given how many steps to take."""
    return per_step(DeviceReads, run, first=2)


@contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, model: ModelPatcher) -> Iterator[None]:
    """Inside the block the host believes that only one chunk fits and splits its batches."""
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
        yield


def nearly(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is below `tolerance` of the largest value."""
    return (actual - expected).abs().max() <= tolerance * expected.abs().max()


def controlnet(seed: int = 3, dtype: torch.dtype = torch.float64) -> comfy.controlnet.ControlNet:
    """A ControlNet of the host for `sd15`, with an 8 x 8 hint for each latent cell."""
    config = unet_config(hint_channels=3, dtype=dtype)
    for key in ("out_channels", "transformer_depth_output", "use_temporal_attention", "use_temporal_resblock"):
        del config[key]
    network = comfy.cldm.cldm.ControlNet(**config, device=CPU, operations=comfy.ops.disable_weight_init)
    randomise(network.float(), seed)
    network.to(dtype).eval().requires_grad_(False)
    control = comfy.controlnet.ControlNet(network, load_device=CPU)
    hint = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(seed))
    return control.set_cond_hint(hint, strength=0.5)


def video(seed: int = 0) -> ModelPatcher:
    """A UNet with attention over time after each attention over space, as SVD has, taking three frames."""
    config = unet_config(
        use_temporal_attention=True, use_temporal_resblock=True, extra_ff_mix_layer=True, video_kernel_size=[3, 1, 1],
        merge_strategy="learned", merge_factor=0.0, dtype=torch.float64,
    )  # fmt: skip
    model = patcher_of(comfy.supported_models.SD15, comfy.model_base.BaseModel, config, ModelType.EDM, seed)
    model.model.diffusion_model.default_num_video_frames = 3
    return model


VIDEO_WIDTH = 3 * 256  # of SVD's numbers for speed, motion and noise


def svd(seed: int = 0, **config: object) -> ModelPatcher:
    """A tiny SVD: frames with the first picture beside them, and numbers that go with the noise level."""
    unet = unet_config(
        in_channels=8, num_classes="sequential", adm_in_channels=VIDEO_WIDTH, use_linear_in_transformer=True,
        use_temporal_attention=True, use_temporal_resblock=True, extra_ff_mix_layer=True, use_spatial_context=True,
        video_kernel_size=[3, 1, 1], merge_strategy="learned_with_images", merge_factor=0.0,
        **{"dtype": torch.float64, **config},
    )  # fmt: skip
    kind = ModelType.V_PREDICTION_EDM
    return patcher_of(comfy.supported_models.SVD_img2vid, comfy.model_base.SVD_img2vid, unet, kind, seed)


def dit() -> ModelPatcher:
    """A tiny SD3: a transformer without the layers of a UNet."""
    config = {
        "input_size": None, "patch_size": 2, "in_channels": 4, "depth": 2, "adm_in_channels": POOLED,
        "num_patches": 256, "pos_embed_max_size": 16, "dtype": torch.float32, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
    }  # fmt: skip
    model = comfy.model_base.SD3(comfy.supported_models.SD3(config), device=CPU)
    randomise(model.diffusion_model, 0)
    model.diffusion_model.pos_embed.zero_()  # a buffer, which the host leaves uninitialised
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def flux() -> ModelPatcher:
    """A tiny Flux; the host calls it with other arguments than a UNet."""
    sizes = {
        "in_channels": 4, "out_channels": 4, "vec_in_dim": POOLED, "context_in_dim": WIDTH, "hidden_size": 32,
        "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    config = {key: value for key, value in sizes.items() if key in known}
    config |= {"image_model": "flux", "dtype": torch.float32}
    model = comfy.model_base.Flux(comfy.supported_models.Flux(config), device=CPU)
    randomise(model.diffusion_model, 0)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)
