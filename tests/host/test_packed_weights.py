"""ControlNeXt's weights for the UNet on models whose weights are packed, patched, or kept in the host's own numbers."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.ops
import pytest
import torch
from reins.engine.unpatched import Unpatched
from reins.nodes.controlnext.load import make_unet_weights
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.tests.helpers import controlnext, tiny_models
from reins.tests.helpers.packed import Packed, packed_sd15
from reins.tests.helpers.tiny_models import sample
from torch import nn

PREFIX = "diffusion_model."
KERNEL = "input_blocks.1.1.proj_in.weight"
MATRIX = "middle_block.1.transformer_blocks.0.attn2.to_out.0.weight"


def increments(weights):
    generator = torch.Generator().manual_seed(3)
    return {key: 0.1 * torch.randn(weights[key].shape, generator=generator) for key in (KERNEL, MATRIX)}


def with_unet(model, tensors, mode, reference=None):
    made = controlnext.control(model)
    made = replace(made, unet=make_unet_weights(tensors, "the unet file", mode))
    settings = {"strength": 0.0, "reference_model": reference}
    return ControlNeXtApply.execute(model, made, controlnext.picture(), **settings).result[0]


def added(steered):
    """What the node has put on the model, by the names of the file."""
    return {
        key.removeprefix(PREFIX): patch[1][1][0]
        for key, patches in steered.patches.items()
        for patch in patches
        if key.removeprefix(PREFIX) in (KERNEL, MATRIX)
    }


@pytest.mark.parametrize("tells", [True, False], ids=["true shape told", "stored shape told"])
@pytest.mark.parametrize("mode", ["auto", "told"])
@pytest.mark.parametrize("kind", ["increment", "full"])
def test_a_file_fits_a_model_with_packed_weights(kind, mode, tells):
    model, weights = packed_sd15(tells)
    of_file = increments(weights)
    tensors = of_file if kind == "increment" else {key: weights[key] + value for key, value in of_file.items()}
    found = added(with_unet(model, tensors, "auto" if mode == "auto" else kind))
    assert found.keys() == of_file.keys()
    for key, value in of_file.items():
        assert type(found[key]) is torch.Tensor
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-6)


def test_the_network_computes_with_the_sum():
    model, weights = packed_sd15()
    of_file = increments(weights)
    found = sample(with_unet(model, {key: weights[key] + value for key, value in of_file.items()}, "full"))
    plain = tiny_models.sd15()
    state = {**weights, **{key: weights[key] + value for key, value in of_file.items()}}
    plain.model.diffusion_model.load_state_dict(state)
    torch.testing.assert_close(found, sample(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_weights_that_nobody_can_unpack_are_refused_in_words(mode):
    model, weights = packed_sd15(mute=True)
    with pytest.raises(ValueError, match=r"is packed \(torch.uint8.*MuteLinear.*Set unet_mode to increment"):
        with_unet(model, {MATRIX: increments(weights)[MATRIX]}, mode)


def test_increments_need_no_weights_that_can_be_unpacked():
    model, weights = packed_sd15(mute=True)
    of_file = {MATRIX: increments(weights)[MATRIX]}
    assert torch.equal(added(with_unet(model, of_file, "increment"))[MATRIX], of_file[MATRIX])


def test_a_reference_that_is_not_packed_serves_in_the_place_of_packed_weights():
    model, weights = packed_sd15(mute=True)
    reference = tiny_models.sd15(seed=4)
    own = reference.model.diffusion_model.state_dict()[MATRIX]
    change = increments(weights)[MATRIX]
    found = added(with_unet(model, {MATRIX: own + change}, "full", reference))
    torch.testing.assert_close(found[MATRIX], change, atol=1e-6, rtol=1e-6)


def steered_by_another(model, key):
    """A clone of a model with a patch of one weight, loaded into the network."""
    other = model.clone()
    other.add_patches({f"{PREFIX}{key}": ("diff", (torch.ones(tuple(Unpatched(model, PREFIX).shape(PREFIX + key))),))})
    comfy.model_management.load_models_gpu([other])
    return other


@pytest.mark.parametrize("key", [KERNEL, MATRIX])
@pytest.mark.parametrize("make", [lambda: packed_sd15(True), lambda: packed_sd15(False)], ids=["told", "stored"])
def test_packed_weights_are_read_as_they_are_while_another_clone_is_loaded(make, key):
    model, weights = make()
    other = steered_by_another(model, key)
    assert isinstance(model.model.get_parameter(PREFIX + key), Packed)
    assert model.model.get_parameter(PREFIX + key).patches
    assert torch.equal(Unpatched(model, PREFIX)[PREFIX + key], weights[key])
    assert model.model.get_parameter(PREFIX + key).patches
    del other


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_are_read_as_they_are_while_another_clone_is_loaded(in_place):
    model = tiny_models.sd15()
    model.weight_inplace_update = in_place
    before = model.model.diffusion_model.state_dict()[MATRIX].clone()
    other = steered_by_another(model, MATRIX)
    assert torch.equal(other.model.diffusion_model.state_dict()[MATRIX], before + 1)
    assert torch.equal(Unpatched(model, PREFIX)[PREFIX + MATRIX], before)
    del other


def test_numbers_that_the_host_keeps_packed_are_read_by_its_layer():
    quantised = pytest.importorskip("comfy.quant_ops").QuantizedTensor
    model, value = tiny_models.sd15(), torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    layer = model.model.diffusion_model.get_submodule(MATRIX.removesuffix(".weight"))
    layouts = getattr(comfy.ops, "QUANT_ALGOS", {})
    name = next((algo["comfy_tensor_layout"] for key, algo in layouts.items() if key == "float8_e4m3fn"), None)
    if name is None or not hasattr(quantised, "from_float"):
        pytest.skip("this host has no numbers of its own")
    packed = quantised.from_float(value, name, scale="recalculate")
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.convert_weight = lambda weight, inplace=False, **_: weight.dequantize()
    found = Unpatched(model, PREFIX)[PREFIX + MATRIX]
    assert torch.equal(found, packed.dequantize().float())
    assert (found - value).abs().max() < 0.05
