"""The formulas of IP-Adapters for transformers give what was stored, and files have the released layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from reins.tests.helpers.ip_adapters_by_hand import (
    instantx_flux_term,
    instantx_flux_tokens,
    resampled,
    sd3_term,
    siglip_pooled,
    xlabs_term,
    xlabs_tokens,
)
from reins.tests.helpers.transformer_ip_adapters import (
    digest,
    full_size,
    in_diffusers_names,
    instantx_flux_file,
    nested,
    sd3_file,
    xlabs_file,
)
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
SD3, XLABS = GOLDEN / "sd3_ip_adapter.safetensors", GOLDEN / "flux_xlabs.safetensors"
INSTANTX = GOLDEN / "flux_instantx.safetensors"
TINY = {"sd3": sd3_file, "xlabs": xlabs_file, "xlabs v2": xlabs_file, "instantx flux": instantx_flux_file}


def nearly(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(("network", "layers"), [("bare", 2), ("normed", 2), ("dual", 3)])
def test_the_sd3_files_are_those_of_the_goldens(network, layers):
    assert digest(sd3_file(layers=layers)) == metadata(SD3)[f"adapter_sha256.{network}"]


@pytest.mark.parametrize("tokens", [4, 16])
def test_the_xlabs_files_are_those_of_the_goldens(tokens):
    assert digest(xlabs_file(tokens=tokens)) == metadata(XLABS)[f"adapter_sha256.{tokens}"]


@pytest.mark.parametrize("timestep", [1000, 500])
def test_resampled_tokens_equal_those_of_diffusers(timestep):
    golden = load_file(SD3)
    tokens, temb = resampled(sd3_file(), golden["hidden_states"], torch.tensor([float(timestep)]))
    assert nearly(tokens, golden[f"tokens.{timestep}"])
    assert nearly(temb, golden[f"temb.{timestep}"])


def test_resampled_tokens_differ_by_step():
    golden = load_file(SD3)
    assert not nearly(golden["tokens.500"], golden["tokens.1000"], 0.1)


def test_the_sd3_term_equals_that_of_diffusers():
    golden = load_file(SD3)
    q, k, v = (golden[f"term.{part}"] for part in "qkv")
    term = sd3_term(sd3_file(), 1, q, k, v, golden["tokens.500"], golden["temb.500"])
    assert nearly(term, golden["term.out"])


@pytest.mark.parametrize("tokens", [4, 16])
def test_xlabs_equals_that_of_diffusers(tokens):
    golden, weights = load_file(XLABS), xlabs_file(tokens=tokens)
    assert nearly(xlabs_tokens(weights, golden["image_embeds"]), golden[f"tokens.{tokens}"])
    assert nearly(
        xlabs_term(weights, 1, golden[f"term.q.{tokens}"], golden[f"tokens.{tokens}"]), golden[f"term.out.{tokens}"]
    )


@pytest.mark.parametrize("network", ["bare", "normed", "dual"])
@pytest.mark.parametrize("timestep", [1000, 500])
def test_the_adapter_is_a_clear_part_of_the_prediction_of_sd3(network, timestep):
    golden = load_file(SD3)
    plain, adapted = (golden[f"{which}.{network}.{timestep}"] for which in ("plain", "adapted"))
    assert 0.05 < (adapted - plain).norm() / plain.norm() < 0.5


@pytest.mark.parametrize("tokens", [4, 16])
@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_the_adapter_is_a_clear_part_of_the_prediction_of_flux(tokens, sigma):
    golden = load_file(XLABS)
    plain, adapted = golden[f"plain.{sigma}"], golden[f"adapted.{tokens}.{sigma}"]
    assert 0.05 < (adapted - plain).norm() / plain.norm() < 0.5


def test_the_instantx_file_is_that_of_the_goldens():
    assert digest(instantx_flux_file()) == metadata(INSTANTX)["adapter_sha256"]


def test_the_pooled_output_of_siglip_equals_that_of_transformers():
    golden = load_file(INSTANTX)
    assert nearly(siglip_pooled(golden, golden["last_hidden_state"], heads=2), golden["pooler_output"])


def test_instantx_tokens_equal_the_stored_ones():
    golden = load_file(INSTANTX)
    assert nearly(instantx_flux_tokens(instantx_flux_file(), golden["pooler_output"]), golden["tokens"])


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_the_adapter_of_instantx_is_a_clear_part_of_the_prediction_of_flux(sigma):
    golden = load_file(INSTANTX)
    plain, adapted = golden[f"plain.{sigma}"], golden[f"adapted.{sigma}"]
    assert 0.05 < (adapted - plain).norm() / plain.norm() < 0.5


def test_instantx_norms_keys_and_values():
    """So a gain on either changes next to nothing, and a token alone gives its normed value to each query."""
    weights, draw = instantx_flux_file(tokens=1), torch.Generator().manual_seed(1)
    q = torch.randn((1, 2, 5, 16), generator=draw)
    tokens = instantx_flux_tokens(weights, torch.randn((1, 12), generator=draw))
    value = (tokens @ weights["ip_adapter.3.to_v_ip.weight"].T).reshape(2, 16)
    value = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    term = instantx_flux_term(weights, 3, q, tokens)
    assert nearly(term, value.reshape(1, 1, 32).expand(1, 5, 32))

    weights = instantx_flux_file()
    tokens = instantx_flux_tokens(weights, torch.randn((1, 12), generator=draw))
    louder = {key: 3 * value if "_ip." in key else value for key, value in weights.items()}
    assert nearly(instantx_flux_term(louder, 3, q, tokens), instantx_flux_term(weights, 3, q, tokens), 1e-4)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_file_has_the_names_and_axes_of_the_released_one(name):
    def layout(weights: dict) -> dict[str, int]:
        return {re.sub(r"(layers|ip_adapter|double_blocks)\.\d+", r"\1.0", key): v.ndim for key, v in weights.items()}

    assert layout(full_size(name)) == layout(TINY[name]())


@pytest.mark.parametrize(
    ("name", "tensors", "gigabytes"),
    [("sd3", 329, 1.6), ("xlabs", 80, 0.98), ("xlabs v2", 80, 1.06), ("instantx flux", 120, 5.29)],
)
def test_the_released_sizes_make_files_of_the_released_size(name, tensors, gigabytes):
    weights = full_size(name)
    assert len(weights) == tensors
    assert sum(value.numel() * 2 for value in weights.values()) / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_the_copy_for_diffusers_differs_in_the_names_of_blocks_alone():
    weights = sd3_file()
    copy = in_diffusers_names(weights)
    assert len(copy) == len(weights)
    assert {key for key in copy if key not in weights} == {
        f"image_proj.layers.{i}.{name}"
        for i in range(2)
        for name in (
            *(f"{norm}.{part}" for norm in ("ln0", "ln1", "adaln_norm", "adaln_proj") for part in ("weight", "bias")),
            *(f"attn.{matrix}.weight" for matrix in ("to_q", "to_kv", "to_out.0")),
            *(f"ff.net.{layer}.weight" for layer in ("0.proj", "2")),
        )
    }
    assert list(nested(copy)) == ["image_proj", "ip_adapter"]
