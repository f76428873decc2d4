"""Numbers in the names of tensors are no sizes: one that is far too large is refused at once, with the file's name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reins.models.controlnext import files as controlnext
from reins.models.ip_adapter import files as ip_adapter
from reins.models.prompt_diffusion import files as prompt_diffusion
from reins.models.unicon import files as unicon
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def prompt_diffusion_file() -> dict[str, Tensor]:
    """The file in the names of diffusers."""
    table = json.loads((GOLDEN / "prompt_diffusion_files.json").read_text())
    return {row[0]: torch.empty(row[1], device="meta") for row in table.values()}


def controlnext_file() -> dict[str, Tensor]:
    table = json.loads((GOLDEN / "controlnext_files.json").read_text())["control"]["sdxl"]
    return {key: torch.zeros(()).expand(shape) for key, shape in table.items()}


TRANSFORMER = "down_blocks.{}.attentions.0.transformer_blocks.0"


def unicon_file() -> dict[str, Tensor]:
    """The first block of a release."""
    block = TRANSFORMER.format(0)
    weights = {f"{block}.conv1n.weight": torch.zeros(4, 4)}
    for attention, of_set in (("attn1n", "xy_lora"), ("attn1n", "yx_lora"), ("attn1", "y_lora"), ("attn2", "y_lora")):
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            weights[f"{block}.{attention}.{projection}.lora_A.{of_set}.weight"] = torch.zeros(2, 4)
            weights[f"{block}.{attention}.{projection}.lora_B.{of_set}.weight"] = torch.zeros(4, 2)
    return weights


FILES: dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[..., object], str]] = {
    "Prompt Diffusion": (prompt_diffusion_file, prompt_diffusion.control_part, "down_blocks.{}.resnets.0.conv1.weight"),
    "Prompt Diffusion's residual blocks": (
        prompt_diffusion_file, prompt_diffusion.control_part, "down_blocks.0.resnets.{}.conv1.weight"
    ),
    "ControlNeXt": (controlnext_file, controlnext.control_part, "down_res.{}.conv1.weight"),
    "UniCon": (
        unicon_file, unicon.parse_unicon, f"{TRANSFORMER}.conv1n.weight"
    ),
    "IP-Adapter": (dict, ip_adapter.take_apart, "ip_adapter.{}.to_k_ip.weight"),
}  # fmt: skip


@pytest.mark.parametrize("number", ["100000", "1000000000", "9" * 5000, "٢", "²"], ids=lambda number: number[:10])
@pytest.mark.parametrize("name", FILES)
def test_a_number_in_a_name_that_no_file_has_is_refused_at_once(name, number):
    make, take_apart, pattern = FILES[name]
    start = time.perf_counter()
    try:
        parts = take_apart({**make(), pattern.format(number): torch.zeros(4, 4)}, "thing.safetensors")
    except ValueError as error:
        assert "thing.safetensors" in str(error) and "\n" not in str(error)
        assert len(str(error)) < 1500
    else:  # the loader compares all names with those of the network, and refuses what is left
        assert any(number in str(key) for part in parts if isinstance(part, dict | tuple) for key in part)
    assert time.perf_counter() - start < 2
