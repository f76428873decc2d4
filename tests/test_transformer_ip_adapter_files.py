"""IP-Adapter files for transformers: the released ones are known at full size, and what is none is refused."""

from __future__ import annotations

import re
import time

import pytest
import torch
from reins.models.ip_adapter.files import take_apart
from reins.tests.helpers.transformer_ip_adapters import (
    full_size,
    in_diffusers_names,
    instantx_flux_file,
    sd3_file,
    xlabs_file,
)
from torch import nn

TINY = {"sd3": sd3_file, "xlabs": xlabs_file, "instantx": instantx_flux_file}
SIGLIP, CLIP_L = "sigclip_vision_patch14_384 (SigLIP so400m)", "clip-vit-large-patch14"

# file -> kind, tokens, width of a token, what is read and its width, form, layers, their sizes, encoder
RELEASED = {
    "sd3": ("timed", 64, 1152, "penultimate_hidden_states", 1152, "sd3", 38, (2432, 2432), SIGLIP),
    "xlabs": ("linear", 4, 4096, "image_embeds", 768, "xlabs", 19, (3072, 4096), CLIP_L),
    "xlabs v2": ("linear", 16, 4096, "image_embeds", 768, "xlabs", 19, (3072, 4096), CLIP_L),
    "instantx flux": ("pooled", 128, 4096, "image_embeds", 1152, "instantx", 57, (3072, 4096), SIGLIP),
}


def shapes(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_known_and_its_networks_have_its_tensors(name, names):
    weights = in_diffusers_names(full_size(name)) if names == "diffusers" else full_size(name)
    parts = take_apart(weights, "file.safetensors")
    kind, tokens, context, reads, width, form, layers, sizes, encoder = RELEASED[name]
    assert tuple(parts.kind[:5]) == (kind, tokens, context, reads, width)
    assert (parts.kind.form, parts.kind.encoder) == (form, encoder)
    assert parts.sizes == [sizes] * layers
    assert parts.lora == {}
    with torch.device("meta"):
        projection, network = parts.make_projection(operations=nn), parts.make_layers(operations=nn)
    assert shapes(projection.state_dict()) == shapes(parts.projection)
    assert shapes(network.state_dict()) == shapes(parts.layers)


def in_file(name, n):
    """The name of the first matrix of attention n."""
    if name == "xlabs":
        return f"double_blocks.{n}.processor.ip_adapter_double_stream_k_proj.weight"
    return f"ip_adapter.{n}.to_k_ip.weight"


def without(weights, *prefixes):
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


def of_attention(name, n):
    return f"double_blocks.{n}." if name == "xlabs" else f"ip_adapter.{n}."


def refusal(weights):
    """How a file is refused, by one line that ends with what to do."""
    with pytest.raises(ValueError, match=r"thing\.safetensors") as error:
        take_apart(weights, "thing.safetensors")
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500
    return text


@pytest.mark.parametrize("name", ["sd3", "xlabs", "instantx flux"])
@pytest.mark.parametrize("n", [0, 9])
def test_a_file_without_one_of_its_layers_says_which(name, n):
    text = refusal(without(full_size(name), of_attention(name, n)))
    if n:
        group = of_attention(name, n).rstrip(".")
        last = RELEASED[name][6] - 1
        assert (
            f"is incomplete: its layers should have the numbers 0 to {last} without a gap, but it lacks {group}" in text
        )
    elif name == "xlabs":
        assert f"should hold {in_file(name, 0)} with 2 axes, as an IP-Adapter for Flux (XLabs)" in text
    else:
        model = "Stable Diffusion 3.5 (InstantX)" if name == "sd3" else "Flux (InstantX)"
        assert f"should hold 0.to_k_ip.weight with 2 axes, as an IP-Adapter for {model} has it, but it is miss" in text


@pytest.mark.parametrize("name", ["sd3", "xlabs", "xlabs v2", "instantx flux"])
def test_each_group_alone_is_told_as_a_part_of_its_kind(name):
    projection = ("image_proj.", "ip_adapter_proj_model.")
    of_layers = {key: value for key, value in full_size(name).items() if not key.startswith(projection)}
    of_picture = {key: value for key, value in full_size(name).items() if key.startswith(projection)}
    lacks = {"sd3": "latents", "instantx flux": r"proj\.0\.weight"}.get(name, r"proj\.weight")
    assert re.search(rf"should hold {lacks} with \d axes", refusal(of_layers))
    assert "it is missing" in refusal(of_picture) or "should hold image_proj.* and ip_adapter" in refusal(of_picture)


@pytest.mark.parametrize("number", ["5", "1000000000", "9" * 5000, "01", "٢", "-1", "1.5", ""], ids=lambda n: n[:10])
@pytest.mark.parametrize("name", TINY)
def test_a_layer_with_another_number_is_refused_at_once(name, number):
    """The number is no size: nothing is made for the numbers below it, and Python reads none of thousands of digits."""
    weights = TINY[name]() | {in_file(name, number): torch.zeros(32, 16)}
    start = time.perf_counter()
    try:
        parts = take_apart(weights, "thing.safetensors")
    except ValueError as error:
        assert "thing.safetensors" in str(error) and len(str(error)) < 500
    else:  # told by the loader, which compares all names
        assert set(shapes(parts.layers)) - set(shapes(parts.make_layers(operations=nn).state_dict()))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("other", TINY)
@pytest.mark.parametrize("name", TINY)
def test_parts_of_two_files_are_refused(name, other):
    if name == other:
        return
    projection = ("image_proj.", "ip_adapter_proj_model.")
    theirs = {key: value for key, value in TINY[other]().items() if key.startswith(projection)}
    assert re.search("should hold|no known IP-Adapter has", refusal({**without(TINY[name](), *projection), **theirs}))


def test_a_tensor_under_two_names_is_refused():
    """Else one of them would be used, and nobody could say which."""
    for weights, used, other, names in (
        (sd3_file(), "image_proj.", "image_proj_model.", "image_proj_model.* and image_proj.*"),
        (instantx_flux_file(), "ip_adapter.", "adapter_modules.", "ip_adapter.* and adapter_modules.*"),
    ):
        again = {key.replace(used, other, 1): value for key, value in weights.items() if key.startswith(used)}
        assert f"holds {names}, which are two names of one part" in refusal({**weights, **again})
    copy = in_diffusers_names(sd3_file())
    both = {**sd3_file(), "image_proj.layers.0.ln0.weight": copy["image_proj.layers.0.ln0.weight"]}
    assert "holds image_proj.layers.0.0.norm1.weight and image_proj.layers.0.ln0.weight" in refusal(both)


SIZES = {
    "heads of 32": ("ip_adapter.{}.norm_", "heads of its attentions should have 64 numbers each"),
    "odd sines": ("image_proj.time_embedding.linear_1.weight", "should read as many sines as cosines of the time"),
    "heads of the projection": ("image_proj.layers.0.0.to_q.weight", "heads of its projection should have 64 numbers"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_no_step_could_compute_with_are_refused(name):
    """All shapes of such a file fit each other, so that it would fail in the middle of sampling."""
    start, message = SIZES[name]
    weights = dict(sd3_file())
    for key in weights:
        if "norm_" in start and key.startswith("ip_adapter.") and "norm_" in key and "linear" not in key:
            weights[key] = weights[key][:32]
        elif key == start:
            weights[key] = weights[key][..., :31] if "time" in key else weights[key][:100]
    assert message in refusal(weights)


@pytest.mark.parametrize("change", ["vector", "empty", "three axes", "scalar"])
@pytest.mark.parametrize("name", TINY)
def test_a_matrix_with_other_axes_is_refused(name, change):
    weights = TINY[name]()
    key = in_file(name, 0)
    changed = {"vector": weights[key][0], "empty": weights[key][:0], "three axes": weights[key][None],
               "scalar": weights[key][0, 0]}[change]  # fmt: skip
    assert f"with 2 axes, as an IP-Adapter for .* has it, but it is {tuple(changed.shape)}".replace(
        ".*",
        "Stable Diffusion 3.5 (InstantX)" if name == "sd3" else f"Flux ({'XLabs' if name == 'xlabs' else 'InstantX'})",
    ) in refusal({**weights, key: changed})


def test_layers_of_a_resampler_are_those_with_matrices():
    """Thousands of names do not make thousands of layers to compare with."""
    weights = sd3_file() | {f"image_proj.layers.{i}.x": torch.zeros(1) for i in range(2, 3000)}
    assert take_apart(weights, "x").make_projection.keywords["depth"] == 2
    unet = {"image_proj.latents": torch.zeros(1, 4, 8), "image_proj.proj_in.weight": torch.zeros(8, 6)}
    unet |= {f"image_proj.layers.{i}.0.to_q.weight": torch.zeros(64, 8) for i in range(2)}
    unet |= {f"image_proj.layers.{i}.x": torch.zeros(1) for i in range(2, 3000)}
    unet |= {"image_proj.norm_out.weight": torch.zeros(16)}
    unet |= {f"ip_adapter.1.to_{part}_ip.weight": torch.zeros(16, 16) for part in "kv"}
    assert take_apart(unet, "x").make_projection.keywords["depth"] == 2


FOREIGN = {
    "a LoRA of XLabs for Flux: use the node": "double_blocks.0.processor.qkv_lora1.down.weight",
    "a ControlNet: use Load ControlNet Model": "controlnet_blocks.0.weight",
    "an image model: use Load Checkpoint": "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
    "an image model: use Load Checkpoint, or": "joint_blocks.0.x_block.attn.qkv.weight",
    "an image model: use Load Checkpoint, or Load": "transformer_blocks.0.attn.to_q.weight",
    "a LoRA: use Load LoRA": "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "an image encoder: use Load CLIP Vision": "vision_model.head.probe",
    "a style model, as Redux is one: use Load Style Model": "redux_up.weight",
    "a PuLID: use the node": "pulid_encoder.id_embedding_mapping.0.weight",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_file_for_transformers_is_refused_by_what_it_is(what):
    beside = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)} if "ControlNet" in what else {}
    assert f"thing.safetensors is not an IP-Adapter but {what}" in refusal({FOREIGN[what]: torch.zeros(1), **beside})
