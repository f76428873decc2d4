"""Tiny UNets whose matrices are kept in the host's own quantised numbers, as files with `comfy_quant` are loaded."""

from __future__ import annotations

import json

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import tiny_models
from torch import Tensor, nn

FORMATS = ("float8_e4m3fn", "int8_tensorwise")
OF_BLOCKS = ("nvfp4", "mxfp8")  # a scale for each block of numbers


def layout_of(form: str) -> str:
    """The host's name of a layout. Skips a test on a host that does not have it."""
    algorithms = getattr(comfy.ops, "QUANT_ALGOS", {})
    if form not in algorithms or not hasattr(comfy.ops.QuantizedTensor, "state_dict"):
        pytest.skip(f"this host has no {form}")
    return algorithms[form]["comfy_tensor_layout"]


def file_of(model: ModelPatcher, form: str) -> dict[str, Tensor]:
    """The tensors of a quantised file of the UNet."""
    layout, network = layout_of(form), model.model.diffusion_model
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    told = json.dumps({"format": form}).encode()
    file = {}
    for key, value in network.state_dict().items():
        if key.removesuffix(".weight") in linear:
            packed = comfy.ops.QuantizedTensor.from_float(value.detach(), layout, scale="recalculate")
            file |= packed.state_dict(key)
            file[f"{key.removesuffix('weight')}comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
        else:
            file[key] = value
    return file


def quantised(form: str, seed: int = 0) -> ModelPatcher:
    """A tiny SD1.5 of quantised layers of the host."""
    file = file_of(tiny_models.sd15(seed), form)
    config = comfy.supported_models.SD15(tiny_models.unet_config())
    config.unet_config, config.quant_config = tiny_models.unet_config(), {"mixed_ops": True}
    config.manual_cast_dtype = torch.float32
    model = comfy.model_base.BaseModel(config, ModelType.EPS, device=tiny_models.CPU)
    model.diffusion_model.load_state_dict(file)
    model.diffusion_model.eval().requires_grad_(False)
    return ModelPatcher(model, load_device=tiny_models.CPU, offload_device=tiny_models.CPU)


class RoundedLinear(nn.Linear):
    """Multiplies whole numbers of 8 bits, as the host does with int8 weights: each row of the input has its step."""

    step: Tensor  # of the weights

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's result (any, outputs) for x (any, inputs)."""
        steps = x.abs().amax(-1, keepdim=True) / 127
        product = nn.functional.linear((x / steps).round(), (self.weight / self.step).round())
        return product * (steps * self.step) + (0 if self.bias is None else self.bias)


def dequantised(model: ModelPatcher) -> ModelPatcher:
    """A tiny SD1.5 with the numbers that a quantised one computes with, its patches included."""
    comfy.model_management.load_models_gpu([model])
    numbers = {key: numbers_of(value) for key, value in model.model.diffusion_model.named_parameters()}
    plain = tiny_models.sd15()
    plain.model.diffusion_model.load_state_dict(numbers)
    for name, layer in model.model.diffusion_model.named_modules():
        if getattr(layer, "quant_format", None) == "int8_tensorwise":
            rounded = plain.model.diffusion_model.get_submodule(name)
            rounded.__class__, rounded.step = RoundedLinear, layer.weight.params.scale.clone()
    return plain


def numbers_of(weight: Tensor) -> Tensor:
    """The numbers that a weight stands for."""
    return weight.dequantize() if is_quantised(weight) else weight.detach().clone()


def is_quantised(weight: Tensor) -> bool:
    """Whether a tensor is one of the host's quantised ones."""
    return isinstance(weight, comfy.ops.QuantizedTensor)


def stored(model: ModelPatcher) -> dict[str, bytes]:
    """The bytes of all tensors of a network, quantised or not."""
    return {key: value.detach().contiguous().view(torch.uint8).numpy().tobytes() for key, value in _flat(model)}


def _flat(model: ModelPatcher) -> list[tuple[str, Tensor]]:
    return [(key, value.reshape(-1)) for key, value in model.model.diffusion_model.state_dict().items()]
