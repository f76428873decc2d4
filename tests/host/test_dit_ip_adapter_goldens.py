"""Stored results of IP-Adapters for Stable Diffusion 3 and for Flux, on tiny networks of seed 0.

diffusers made those of SD3 and of XLabs' adapter, ComfyUI-IPAdapter-Flux those of InstantX' adapter for Flux.
diffusers has the feed-forward layers of Flux four times as wide as its tokens, and the tiny network is made so.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.hooked_ip_adapters import instantx_flux_added, sd3_added, xlabs_added
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.transformer_ip_adapters import (
    digest,
    in_diffusers_names,
    instantx_flux_file,
    sd3_file,
    xlabs_file,
)
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
SD3, XLABS = GOLDEN / "sd3_ip_adapter.safetensors", GOLDEN / "flux_xlabs.safetensors"
INSTANTX = GOLDEN / "flux_instantx.safetensors"
NETWORKS = {
    "bare": ("sd3", {"num_blocks": 2, "qk_norm": None}),
    "normed": ("sd3", {"num_blocks": 2}),
    "dual": ("sd35m", {"num_blocks": 2, "x_block_self_attn_layers": [0]}),  # a second attention in the first block
}
FLUX = {"mlp_ratio": 4.0}


def sd3(network):
    family, changes = NETWORKS[network]
    return tiny_transformers.make(family, **changes)


def denoised(family, model, golden, sigma):
    """What a model predicts for the stored input at a noise level, without CFG."""
    text = [[golden["context"], {"pooled_output": golden["pooled"], "guidance": 3.5}]]
    sigmas = torch.tensor([sigma, 0.0])
    start = golden["x"] / sigma  # the sampler makes x of it
    latent = tiny_transformers.sample(family, model, cfg=1.0, steps=1, positive=text, start=start, sigmas=sigmas)
    return model.model.process_latent_in(latent)


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_weights_of_sd3_are_those_of_the_goldens(network):
    weights = sd3(network).model.diffusion_model.state_dict()
    assert digest(weights) == metadata(SD3)[f"weights_sha256.{network}"]


@pytest.mark.parametrize("file", [XLABS, INSTANTX], ids=lambda file: file.stem)
def test_the_weights_of_flux_are_those_of_the_goldens(file):
    weights = tiny_transformers.make("flux", **FLUX).model.diffusion_model.state_dict()
    assert digest(weights) == metadata(file)["weights_sha256"]


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_plain_prediction_of_sd3_equals_the_stored_one(network, sigma):
    golden = load_file(SD3)
    expected = golden["x"] - sigma * golden[f"plain.{network}.{1000 * sigma:.0f}"]
    assert nearly(denoised("sd3", sd3(network), golden, sigma), expected, 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("file", [XLABS, INSTANTX], ids=lambda file: file.stem)
def test_the_plain_prediction_of_flux_equals_the_stored_one(file, sigma):
    golden = load_file(file)
    model = tiny_transformers.make("flux", **FLUX)
    expected = golden["x"] - sigma * golden[f"plain.{sigma}"]
    assert nearly(denoised("flux", model, golden, sigma), expected, 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_hooked_adapter_of_sd3_gives_the_stored_prediction(network, sigma):
    golden, model = load_file(SD3), sd3(network)
    adapter = sd3_file(layers=3 if network == "dual" else 2)
    with sd3_added(model, adapter, golden["hidden_states"], 0.7):
        actual = denoised("sd3", model, golden, sigma)
    assert nearly(actual, golden["x"] - sigma * golden[f"adapted.{network}.{1000 * sigma:.0f}"], 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("tokens", [4, 16])
def test_the_hooked_adapter_of_xlabs_gives_the_stored_prediction(tokens, sigma):
    golden, model = load_file(XLABS), tiny_transformers.make("flux", **FLUX)
    with xlabs_added(model, xlabs_file(tokens=tokens), golden["image_embeds"], 0.7):
        actual = denoised("flux", model, golden, sigma)
    assert nearly(actual, golden["x"] - sigma * golden[f"adapted.{tokens}.{sigma}"], 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_the_hooked_adapter_of_instantx_gives_the_stored_prediction(sigma):
    golden, model = load_file(INSTANTX), tiny_transformers.make("flux", **FLUX)
    with instantx_flux_added(model, instantx_flux_file(), golden["pooler_output"], 0.7):
        actual = denoised("flux", model, golden, sigma)
    assert nearly(actual, golden["x"] - sigma * golden[f"adapted.{sigma}"], 1e-5)


def steered(model, file, read, weight=0.7, **settings):
    """A model with an adapter on what an encoder gave."""
    adapter = make_ip_adapter(file, "tiny.safetensors")
    (tokens,) = IPAdapterEncode.execute(adapter, clip_vision_output=read).result
    return IPAdapterApply.execute(model, adapter, tokens, weight, **settings).result[0]


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_adapter_of_sd3_equals_that_of_diffusers(network, sigma, names):
    golden, file = load_file(SD3), sd3_file(layers=3 if network == "dual" else 2)
    file = in_diffusers_names(file) if names == "diffusers" else file
    model = steered(sd3(network), file, golden["hidden_states"])
    expected = golden["x"] - sigma * golden[f"adapted.{network}.{1000 * sigma:.0f}"]
    assert nearly(denoised("sd3", model, golden, sigma), expected, 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("tokens", [4, 16])
def test_the_adapter_of_xlabs_equals_that_of_diffusers(tokens, sigma):
    golden = load_file(XLABS)
    model = steered(tiny_transformers.make("flux", **FLUX), xlabs_file(tokens=tokens), golden["image_embeds"])
    expected = golden["x"] - sigma * golden[f"adapted.{tokens}.{sigma}"]
    assert nearly(denoised("flux", model, golden, sigma), expected, 1e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_the_adapter_of_instantx_for_flux_equals_that_of_comfyui_ipadapter_flux(sigma):
    golden = load_file(INSTANTX)
    model = steered(tiny_transformers.make("flux", **FLUX), instantx_flux_file(), golden["pooler_output"])
    expected = golden["x"] - sigma * golden[f"adapted.{sigma}"]
    assert nearly(denoised("flux", model, golden, sigma), expected, 1e-5)
