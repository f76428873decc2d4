"""Every method on UNets of the host's quantised layers: it does what it does on the same weights dequantised."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from reins.engine.unpatched import Unpatched
from reins.nodes.controlnext.load import make_unet_weights
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.tests.helpers import controlnext
from reins.tests.helpers.methods import METHODS, SECOND, weak
from reins.tests.helpers.quantised import FORMATS, OF_BLOCKS, dequantised, is_quantised, quantised, stored
from reins.tests.helpers.tiny_models import nearly, sample

PREFIX = "diffusion_model."
PATCHED = ("weak", "controlnext")  # they change weights, which the host quantises anew
METHODS_ALONE = [name for name in METHODS if name not in (*PATCHED, *SECOND)]
# The host rounds patched weights by chance, so to one of the two nearest numbers: how far these lie apart, at most, as
# a share of the largest
ROUNDED = {"float8_e4m3fn": 1 / 8, "int8_tensorwise": 1 / 64, "nvfp4": 2 / 5, "mxfp8": 1 / 8}
SAME = 5e-4  # of the largest value: the same numbers, multiplied in another order


def lora(model, seed=0):
    """A clone with changes of some matrices, as a LoRA of the host puts them on."""
    weights, generator = Unpatched(model, PREFIX), torch.Generator().manual_seed(seed)
    keys = [key for key, _ in model.model.named_parameters() if key.endswith(("to_q.weight", "to_v.weight"))]
    model = model.clone()
    model.add_patches({key: (0.05 * torch.randn(weights.shape(key), generator=generator),) for key in keys}, 1.0)
    return model


@lru_cache
def both(form, has_lora=False):
    """A quantised model and the dequantised one, and what each makes without a method."""
    model = lora(quantised(form)) if has_lora else quantised(form)
    plain = dequantised(model)
    return model, plain, sample(model), sample(plain)


def same_effect(method, form, has_lora=False):
    """Whether a method changes both results in the same way, twice."""
    model, plain, before, expected = both(form, has_lora)
    steered = method(model)
    found, wanted = sample(steered), sample(method(plain))
    assert not nearly(found, before, 1e-3)
    assert torch.equal(sample(steered), found)
    difference = (found - before) - (wanted - expected)
    return difference.abs().max() <= SAME * wanted.abs().max()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", METHODS_ALONE)
def test_a_method_does_on_quantised_weights_what_it_does_on_their_numbers(method, form):
    before = stored(both(form)[0])
    assert same_effect(METHODS[method], form)
    assert stored(both(form)[0]) == before


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("behind", METHODS_ALONE)
def test_a_method_does_the_same_behind_a_lora(behind, form):
    assert same_effect(METHODS[behind], form, has_lora=True)


@pytest.mark.parametrize("form", OF_BLOCKS)
def test_all_terms_together_act_on_numbers_with_a_scale_for_each_block(form):
    assert same_effect(lambda model: METHODS["ip-adapter"](METHODS["nag"](METHODS["pag"](model))), form)


@pytest.mark.parametrize("has_lora", [True, False])
@pytest.mark.parametrize("form", [*FORMATS, *OF_BLOCKS])
def test_a_weak_model_is_a_quantised_copy_with_its_own_patches(form, has_lora):
    model, plain, *_ = both(form, has_lora)
    other = lora(quantised(form), seed=1)
    weaker = model.clone()
    weaker.patches = {key: list(patches) for key, patches in other.patches.items()}
    before = None if has_lora else stored(model)
    found = sample(weak(model, weaker))
    assert nearly(found, sample(weak(plain, dequantised(other))), SAME)
    assert torch.equal(sample(weak(model, weaker)), found)
    assert has_lora or stored(model) == before


def with_file(model, mode, size=1.0):
    """A model with increments from a file, or with the values that they lead to."""
    tensors = controlnext.unet_file(model, size=size)
    if mode == "full":
        own = Unpatched(model, PREFIX)
        tensors = {key: own[PREFIX + key] + value for key, value in tensors.items()}
    made = replace(controlnext.control(model), unet=make_unet_weights(tensors, "the unet file", mode))
    return ControlNeXtApply.execute(model, made, controlnext.picture()).result[0], tensors


@pytest.mark.parametrize("mode", ["full", "increment"])
@pytest.mark.parametrize("form", [*FORMATS, *OF_BLOCKS])
def test_controlnext_adds_its_file_to_the_numbers_and_its_hint_to_the_features(form, mode):
    model, plain, *_ = both(form)
    before = stored(model)
    steered, tensors = with_file(model, mode)
    numbers = dequantised(steered)
    for key, value in tensors.items():
        old, new = (each.model.diffusion_model.get_parameter(key) for each in (plain, numbers))
        expected = value if mode == "full" else old + value
        assert (new - expected).abs().max() <= ROUNDED[form] * expected.abs().max()
    hint = ControlNeXtApply.execute(numbers, controlnext.control(numbers), controlnext.picture()).result[0]
    found = sample(steered)
    assert nearly(found, sample(hint), SAME)
    assert torch.equal(sample(steered), found)
    sample(model)
    assert stored(model) == before


@pytest.mark.parametrize("behind", METHODS)
def test_the_networks_of_the_pack_are_never_quantised(behind):
    """A projection of zeros, with which training begins, would become NaN in numbers with a scale."""
    steered = METHODS[behind](both(FORMATS[0])[0])
    networks = [patcher.model for patcher in steered.model_patches_models() if patcher.model is not steered.model]
    own = [network for network in networks if not hasattr(network, "diffusion_model")]
    assert not [key for network in own for key, value in network.named_parameters() if is_quantised(value)]
