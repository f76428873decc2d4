"""Stored results of the official method and of ComfyUI_IPAdapter_plus on a small UNet with the layout of SD1.5."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import unet_of
from reins.models.ip_adapter.network import (
    FacePlusProjection,
    FaceProjection,
    FullProjection,
    LinearProjection,
    Resampler,
)
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers.tiny_models import CPU
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

FILE = Path(__file__).parents[1] / "golden" / "ip_adapter.safetensors"
SEED = 1234
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    METADATA = opened.metadata()
ADAPTER = {key.removeprefix("adapter."): value for key, value in GOLDEN.items() if key.startswith("adapter.")}

SETTINGS = {
    "base": None,
    "w1.0": {"weight": 1.0},
    "w0.5": {"weight": 0.5},
    "w-0.5": {"weight": -0.5},
    "w1.0_mask": {"weight": 1.0, "mask": True},
    "w0.5_mask": {"weight": 0.5, "mask": True},
    "w1.0_negembed": {"weight": 1.0, "negative": True},
    "w0.8_2img_concat": {"weight": 0.8, "combine": "concat"},
    "w0.8_2img_average": {"weight": 0.8, "combine": "average"},
    "w0.8_easein": {"weight": 0.8, "weight_type": "ease in"},
    "w0.8_style": {"weight": 0.8, "weight_type": "style"},
    "w0.8_composition": {"weight": 0.8, "weight_type": "composition"},
    "w0.8_KV": {"weight": 0.8, "scaling": "K+V"},
    "w0.8_KVpen": {"weight": 0.8, "scaling": "K+V with C penalty"},
    "w0.8_KmeanV": {"weight": 0.8, "scaling": "K+mean(V) with C penalty"},
    "w1.0_late": {"weight": 1.0, "start_percent": 0.6},
    "stacked": {"weight": 1.0, "mask": True},
}
CHUNKS = {"cou10": ([1, 0], slice(0, 4)), "cou1": ([1], slice(0, 2)), "cou0": ([0], slice(2, 4))}
CASES = [tuple(key.split(".", 1)[1].rsplit(".", 1)) for key in GOLDEN if key.startswith("out.")]
PEER = [key.split(".", 1)[1].rsplit(".", 1)[0] for key in GOLDEN if key.startswith("out_peer.")]


def golden_unet() -> ModelPatcher:
    """The UNet of the goldens: its weights follow from their seed, in the order of its parameters."""
    config = {**json.loads(METADATA["unet_config"]), "dtype": torch.float32}
    family = comfy.supported_models.SD15(config)
    family.unet_config = config
    model = comfy.model_base.BaseModel(family, ModelType.EPS, device=CPU)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in model.diffusion_model.named_parameters():
            p.copy_(stored(torch.randn(p.shape, generator=generator), name, bias=0.05))
    model.diffusion_model.eval().requires_grad_(False)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def stored(noise: torch.Tensor, name: str, bias: float) -> torch.Tensor:
    """As the goldens' weights were made and rounded."""
    if noise.ndim == 1:
        noise = 1 + 0.1 * noise if name.endswith("weight") else bias * noise
    elif name != "latents":
        noise = noise / noise[0].numel() ** 0.5
    return noise.half().float()


@pytest.fixture(scope="module")
def plain() -> ModelPatcher:
    return golden_unet()


def steered(model, case, peer_compatible=False):
    settings = dict(SETTINGS[case] or {})
    if not settings:
        return model
    adapter = make_ip_adapter(ADAPTER, "golden")
    combine = settings.pop("combine", None)
    embeds = GOLDEN["in.pos_embed_2img" if combine else "in.pos_embed"]
    (tokens,) = IPAdapterEncode.execute(adapter, clip_vision_output=embeds, combine=combine or "concat").result
    if settings.pop("negative", False):
        negative = adapter.projection.model(GOLDEN["in.neg_embed_rand"].float())
        tokens = type(tokens)(tokens.cond, negative, negative, tokens.weights, tokens.made_by, tokens.fingerprint)
    mask = GOLDEN["in.mask"] if settings.pop("mask", False) else None
    model = IPAdapterApply.execute(
        model, adapter, tokens, mask=mask, peer_compatible=peer_compatible, **settings
    ).result[0]  # fmt: skip
    if case == "stacked":
        (other,) = IPAdapterEncode.execute(adapter, clip_vision_output=GOLDEN["in.pos_embed_2img"][:1]).result
        return IPAdapterApply.execute(model, adapter, other, 0.7, mask=1 - mask).result[0]
    return model


def forward(model, chunks):
    """One call of the network with the chunks' labels, as the host's wrappers see it."""
    labels, rows = CHUNKS[chunks]
    unet = unet_of(model)
    wrappers = {"wrappers": model.wrappers, **model.model_options["transformer_options"]}
    x, context = GOLDEN["in.x"][rows], GOLDEN["in.context"][rows]
    options = {
        **wrappers, "cond_or_uncond": labels, "uuids": list(range(len(labels))),
        "sigmas": torch.tensor([float(METADATA["sigma_mid"])] * len(x)),
        "reins_sampling": model.get_model_object("model_sampling"),
    }  # fmt: skip
    with torch.no_grad():
        return unet(x, GOLDEN["in.timesteps"][rows].float(), context=context, transformer_options=options)


@pytest.mark.parametrize(("case", "chunks"), CASES)
def test_the_method_equals_the_stored_one(case, chunks, plain):
    expected = GOLDEN[f"out.{case}.{chunks}"]
    found = forward(steered(plain, case), chunks)
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())


@pytest.mark.parametrize("case", PEER)
def test_the_compatible_mode_equals_the_widely_used_pack(case, plain):
    expected = GOLDEN[f"out_peer.{case}.cou10"]
    found = forward(steered(plain, case, peer_compatible=True), "cou10")
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())
    assert (forward(steered(plain, case), "cou10") - expected).abs().max() > 1e-2  # the middle block


def test_the_tokens_equal_the_stored_ones():
    adapter = make_ip_adapter(ADAPTER, "golden")
    (tokens,) = IPAdapterEncode.execute(adapter, clip_vision_output=GOLDEN["in.pos_embed"]).result
    assert torch.allclose(tokens.cond, GOLDEN["in.tokens_cond"], atol=1e-5)
    assert torch.allclose(tokens.uncond, GOLDEN["in.tokens_uncond"], atol=1e-5)


def golden_projections():
    """Each projection of the goldens with its inputs and outputs; weights follow from the seed, as the UNet's do.

    One stream of numbers gave, network after network, the parameters and then the inputs.
    """
    generator = torch.Generator().manual_seed(SEED)
    inputs = {"linear": (2, 40), "resampler": (2, 33, 80), "full": (2, 33, 80), "faceid": (2, 64)}
    for name, network in {
        "linear": LinearProjection(40, 4, 48, nn),
        "resampler": Resampler(80, 16, 96, 128, 48, nn),
        "full": FullProjection(80, 80, 48, nn),
        "faceid": FaceProjection(64, 128, 4, 48, nn),
        "faceidplus": FacePlusProjection(64, 128, 4, 128, nn, clip_width=80, perceiver_inner=128),
    }.items():
        with torch.no_grad():
            for parameter, p in network.named_parameters():
                p.copy_(stored(torch.randn(p.shape, generator=generator), parameter, bias=0.1))
        if name in inputs:
            torch.randn(inputs[name], generator=generator)
        yield name, network.requires_grad_(False)


@pytest.mark.parametrize(("name", "network"), list(golden_projections()), ids=lambda value: str(value)[:12])
def test_a_projection_equals_the_official_one(name, network):
    found = {key.split(".")[-1]: value for key, value in GOLDEN.items() if key.startswith(f"projection.{name}.in.")}
    stored_out = {
        key.split(f"{name}.out.")[1]: value
        for key, value in GOLDEN.items()
        if key.startswith(f"projection.{name}.out.")
    }
    if name == "faceidplus":
        answers = {
            "v1": network(found["id"], found["hidden"]),
            "v2_s1": network(found["id"], found["hidden"], 1.0),
            "v2_s0.5": network(found["id"], found["hidden"], 0.5),
        }
    else:
        first = found.get("image_embeds", found.get("hidden", found.get("id")))
        answers = {"tokens": network(first), "tokens_zeros": network(torch.zeros_like(first[:1]))}
    assert stored_out
    for key, expected in stored_out.items():
        assert (answers[key] - expected).abs().max() <= 1e-5, key
