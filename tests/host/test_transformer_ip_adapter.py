"""IP-Adapters on Stable Diffusion 3.5 and Flux, through the nodes, against what other implementations give."""

from __future__ import annotations

import pytest
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.transformer_ip_adapters import in_diffusers_names, instantx_flux_file, sd3_file, xlabs_file
from reins.tests.host.test_dit_ip_adapter_goldens import FLUX, INSTANTX, NETWORKS, SD3, XLABS, denoised, sd3
from safetensors.torch import load_file


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
