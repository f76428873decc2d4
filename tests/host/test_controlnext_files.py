"""ControlNeXt files on disk and on models: formats, variants, faults, and the UNet's weights that come with them."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from reins.engine.layers.features import channels_at
from reins.models.controlnext.files import VARIANTS
from reins.models.unet_names import host_name
from reins.nodes.controlnext.load import make_controlnext, make_unet_weights, match_controlnext, site_of
from reins.nodes.controlnext.nodes import ControlNeXtApply, ControlNeXtLoader
from reins.tests.helpers import controlnext, full_size, tiny_models
from reins.tests.helpers.damaged_files import Bomb, truncated
from reins.tests.helpers.tiny_models import nearly, sample
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "golden"
UNET_TABLES = json.loads((GOLDEN / "controlnext_files.json").read_text())["unet"]
SVD_NAMES = json.loads((GOLDEN / "svd_unet_names.json").read_text())


@pytest.fixture
def folder(folder_of):
    """A models/controlnext of our own in front of the others."""
    return folder_of("controlnext")


def load(name, **settings):
    return ControlNeXtLoader.execute(name, **settings).result[0]


def apply(model, made, **settings):
    return ControlNeXtApply.execute(model, made, controlnext.picture(1), **settings).result[0]


# --- control files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin", "half", "training dump", "wrapped"])
def test_every_form_of_a_file_loads_and_works(form, folder, model):
    weights, name = controlnext.file_for(model), "file.safetensors" if form in ("safetensors", "half") else "file.bin"
    if form == "half":
        weights = {key: value.half() for key, value in weights.items()}
    if form == "training dump":
        dump = {f"controlnext.{key}": value for key, value in weights.items()}
        torch.save({"module": {**dump, "unet.mid_block.x": torch.ones(1)}, "global_step": 7}, folder / name)
    elif form == "wrapped":
        torch.save({f"module._orig_mod.{key}": value for key, value in weights.items()}, folder / name)
    elif form == "bin":
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    assert name in ControlNeXtLoader.define_schema().inputs[0].options
    plainly = {key: value.float() for key, value in weights.items()}
    expected = sample(apply(model, make_controlnext(plainly, "direct")))
    assert nearly(sample(apply(model, load(name))), expected)
    assert not nearly(sample(model), expected, 1e-2)


FILES = {
    "bomb.bin": lambda path: path.write_bytes(pickle.dumps({"controlnext": Bomb()})),
    "cut.safetensors": truncated,
    "text.bin": lambda path: path.write_text("hello"),
    "control.safetensors": lambda path: save_file({"zero_convs.0.0.weight": torch.zeros(1)}, path),
    "adapter.safetensors": lambda path: save_file({"adapter.body.0.in_conv.weight": torch.zeros(1)}, path),
    "lost.safetensors": lambda path: save_file(
        {key: value for key, value in controlnext.file("sdxl", 32).items() if key != "down_res.1.norm2.bias"}, path
    ),
    "more.safetensors": lambda path: save_file({**controlnext.file("sdxl", 32), "extra": torch.zeros(1)}, path),
    "shape.safetensors": lambda path: save_file(
        {**controlnext.file("sdxl", 32), "mid_convs.0.2.bias": torch.zeros(5)}, path
    ),
    "nan.safetensors": lambda path: save_file(
        {**controlnext.file("sdxl", 32), "mid_convs.1.bias": torch.full((32,), torch.nan)}, path
    ),
}  # fmt: skip
WORDS = {
    "bomb.bin": "asks to run code",
    "cut.safetensors": "cannot be read",
    "text.bin": "not",
    "control.safetensors": "ordinary ControlNet: use Load ControlNet Model",
    "adapter.safetensors": "T2I-Adapter: use Load ControlNet Model",
    "lost.safetensors": "lacks down_res.1.norm2.bias",
    "more.safetensors": "unknown extra",
    "shape.safetensors": r"mid_convs.0.2.bias should be \(16,\) but is \(5,\)",
    "nan.safetensors": "mid_convs.1.bias",
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_sentence(name, folder, capsys):
    FILES[name](folder / name)
    with pytest.raises(ValueError, match=WORDS[name]) as error:
        load(name)
    assert name in str(error.value) and "executed" not in capsys.readouterr().out


def test_the_widest_type_of_a_file_is_kept(folder, sd15):
    weights = controlnext.file_for(sd15)
    first = min(weights)
    weights[first] = weights[first].half()
    weights["mid_convs.1.weight"] = weights["mid_convs.1.weight"] * 1e5
    save_file(weights, folder / "mixed.safetensors")
    state = load("mixed.safetensors").network.model.state_dict()
    assert torch.equal(state["mid_convs.1.weight"], weights["mid_convs.1.weight"])


def test_a_file_of_8_bits_works(folder, sd15):
    weights = {key: value.to(torch.float8_e4m3fn) for key, value in controlnext.file_for(sd15).items()}
    save_file(weights, folder / "small.safetensors")
    assert sample(apply(sd15, load("small.safetensors"))).isfinite().all()


def test_a_name_outside_of_the_folder_is_refused():
    with pytest.raises(ValueError, match="not in the controlnext folders"):
        load("../secret.safetensors")


def test_the_variant_must_have_the_files_layout(folder):
    save_file(controlnext.file("sdxl", 32), folder / "file.safetensors")
    with pytest.raises(ValueError, match="a file of svd-v1, but its tensors are those of sd15-training or sdxl or svd"):
        load("file.safetensors", variant="svd-v1")
    assert load("file.safetensors", variant="svd-v2").variants == ("svd-v2",)


@pytest.mark.parametrize("stem_padding", ["auto", "0", "1"])
def test_the_loader_hands_the_padding_on(stem_padding, folder):
    save_file(controlnext.file("sdxl", 32), folder / "file.safetensors")
    found = load("file.safetensors", stem_padding=stem_padding).stem_padding
    assert found == {"auto": None, "0": 0, "1": 1}[stem_padding]


# --- models --------------------------------------------------------------------------------------------------------


def test_the_ambiguousfamily_of_is_settled_by_the_model():
    for make, name in ((tiny_models.sd15, "sd15-training"), (tiny_models.sdxl, "sdxl"), (tiny_models.video, "svd-v2")):
        model = make()
        variant, _ = match_controlnext(controlnext.control(model), model)
        assert variant is VARIANTS[name]


@pytest.mark.parametrize(
    ("name", "model", "found"),
    [
        ("sd15", tiny_models.sdxl, "SDXL (SDXL)"),
        ("sd15", tiny_models.video, "SVD"),
        ("svd-v1", tiny_models.sd15, "SD1.x"),
        ("sdxl", tiny_models.sd15, "SD1.x"),
        ("svd-v2", tiny_models.sdxl, "SDXL"),
    ],
)
def test_a_file_for_anotherfamily_of_is_refused_with_both_named(name, model, found):
    made = make_controlnext(controlnext.file(name, 64), "the file", name)
    with pytest.raises(ValueError, match="the file is a ControlNeXt for") as error:
        apply(model(), made)
    assert f"{VARIANTS[name].family} ({name})" in str(error.value) and found in str(error.value)


def test_sd2_and_other_unets_with_labels_are_refused(sd15):
    made = controlnext.control(sd15)
    for model, found in (
        (tiny_models.sd2(), "SD2.x"),
        (tiny_models.sd15(num_classes="sequential", adm_in_channels=8), "of another family"),
    ):
        with pytest.raises(ValueError, match=f"but the model is {found}"):
            apply(model, made)


def test_other_widths_are_refused_with_both_numbers(sdxl):
    with pytest.raises(ValueError, match="makes 48 channels, but SDXL has 32 where sdxl adds them"):
        apply(sdxl, make_controlnext(controlnext.file("sdxl", 48), "the file"))


@pytest.mark.parametrize("make", [tiny_models.dit, tiny_models.flux])
def test_models_without_a_unet_are_refused(make, sd15):
    with pytest.raises(ValueError, match="steers a UNet"):
        apply(make(), controlnext.control(sd15))


@pytest.mark.parametrize(
    ("layout", "name", "site", "channels"),
    [
        ("sd15", "sd15", ("output", 0), 1280),
        ("sd15", "sd15-training", ("input", 3), 320),
        ("sdxl", "sdxl", ("input", 0), 320),
        ("sd15", "svd-v1", ("input", 11), 1280),
        ("sd15", "svd-v2", ("input", 3), 320),
    ],
)
def test_on_the_real_layouts_the_places_are_the_official_ones(layout, name, site, channels):
    """SVD's blocks stand as those of SD1.5."""
    unet = full_size.unet(layout)
    found = site_of(unet, VARIANTS[name].place)
    assert found == site and channels_at(unet, found) == channels


BAD = {
    "no picture": (torch.zeros(1, 3, 8), "image should be pictures"),
    "nan": (torch.full((1, 8, 8, 3), torch.nan), "NaN"),
    "none": (torch.zeros(0, 8, 8, 3), "image should be pictures"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_hint_is_refused_and_the_model_stays(name, sd15):
    image, words = BAD[name]
    before = str(sd15.model_options)
    with pytest.raises(ValueError, match=words):
        ControlNeXtApply.execute(sd15, controlnext.control(sd15), image)
    assert str(sd15.model_options) == before and not sd15.patches


@pytest.mark.parametrize("mask", [torch.full((1, 8, 8), torch.nan), torch.ones(3)], ids=["nan", "1d"])
def test_a_bad_mask_is_refused(mask, sd15):
    with pytest.raises(ValueError, match="mask should"):
        apply(sd15, controlnext.control(sd15), mask=mask)


def test_another_socket_is_refused(sd15):
    with pytest.raises(ValueError, match="controlnext should come from Load ControlNeXt, but is str"):
        apply(sd15, "control")


def test_hints_with_transparency_lose_it(sd15):
    image = controlnext.picture(1)
    with_alpha = torch.cat([image, torch.zeros_like(image[..., :1])], -1)
    made = controlnext.control(sd15)
    found = sample(ControlNeXtApply.execute(sd15, made, with_alpha).result[0])
    assert torch.equal(found, sample(apply(sd15, made)))


# --- the UNet's weights --------------------------------------------------------------------------------------------


def weights_of(model):
    """What the network computes with once the host has loaded the model."""
    comfy.model_management.load_models_gpu([model])
    return {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}


def with_unet(model, tensors, mode="auto", **settings):
    made = controlnext.control(model, unet=None)
    made = replace(made, unet=make_unet_weights(tensors, "the unet file", mode))
    return apply(model, made, strength=0.0, **settings)


def full_file(model, increments):
    own = weights_of(model)
    return {key: own[key].float() + value for key, value in increments.items()}


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("kind", ["increment", "full"])
@pytest.mark.parametrize("mode", ["auto", "told"])
def test_the_weights_are_added_at_their_strength(strength, kind, mode, sd15, caplog):
    increments = controlnext.unet_file(sd15)
    tensors = increments if kind == "increment" else full_file(sd15, increments)
    before = weights_of(sd15)
    with caplog.at_level(logging.INFO):
        steered = with_unet(sd15, tensors, "auto" if mode == "auto" else kind, unet_strength=strength)
    after = weights_of(steered)
    for key, value in before.items():
        expected = value + strength * increments[key] if key in increments else value
        torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-6)
    if mode == "auto":
        assert f"taken as {'values' if kind == 'full' else 'increments'}" in caplog.text
    comfy.model_management.unload_all_models()
    assert all(torch.equal(value, before[key]) for key, value in weights_of(sd15).items())


def test_the_file_may_use_diffusers_names():
    """Of a UNet with the blocks of SD1.5, narrow."""
    model = tiny_models.sd15(
        num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 1, 1, 1], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"
    ours = "input_blocks.4.1.transformer_blocks.0.attn2.to_out.0.weight"
    before = weights_of(model)
    after = weights_of(with_unet(model, {f"unet.{key}": torch.ones_like(before[ours])}))
    torch.testing.assert_close(after[ours], before[ours] + 1)


@pytest.mark.parametrize("layout", UNET_TABLES)
def test_the_released_subsets_find_their_places(layout):
    table = comfy.utils.unet_to_diffusers(full_size.unet_config(layout))
    unet = full_size.unet(layout).state_dict()
    for key, (name, shape) in UNET_TABLES[layout].items():
        assert f"diffusion_model.{host_name(key, table)}" == name
        assert list(unet[host_name(key, table)].shape) == shape


def test_the_whole_unet_of_a_video_model_finds_its_places():
    table = comfy.utils.unet_to_diffusers(full_size.unet_config("sd15"))
    assert {key: host_name(key, table) for key in SVD_NAMES} == SVD_NAMES


def test_a_projection_may_be_a_matrix_where_the_model_has_a_kernel(sd15):
    key = "input_blocks.1.1.proj_in.weight"
    before = weights_of(sd15)
    assert before[key].ndim == 4
    after = weights_of(with_unet(sd15, {key: torch.ones_like(before[key][..., 0, 0])}, "increment"))
    torch.testing.assert_close(after[key], before[key] + 1)


def lora_on(model, keys, seed=0, strength=0.7):
    generator = torch.Generator().manual_seed(seed)
    own = model.model.diffusion_model.state_dict()
    content = {}
    for key in keys:
        stem = f"diffusion_model.{key.removesuffix('.weight')}"
        content[f"{stem}.lora_up.weight"] = torch.randn((own[key].shape[0], 2), generator=generator)
        content[f"{stem}.lora_down.weight"] = 0.1 * torch.randn((2, own[key].shape[1]), generator=generator)
    model = model.clone()
    model.add_patches(comfy.lora.load_lora(content, comfy.lora.model_lora_keys_unet(model.model, {})), strength)
    return model


@pytest.mark.parametrize("kind", ["increment", "full"])
def test_with_a_lora_the_order_does_not_matter(kind, sd15):
    increments = controlnext.unet_file(sd15)
    tensors = increments if kind == "increment" else full_file(sd15, increments)
    keys = list(increments)[:3]
    first = weights_of(with_unet(lora_on(sd15, keys), tensors))
    second = weights_of(lora_on(with_unet(sd15, tensors), keys))
    alone, lora, plain = weights_of(with_unet(sd15, tensors)), weights_of(lora_on(sd15, keys)), weights_of(sd15)
    for key in increments:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(first[key], alone[key] + lora[key] - plain[key], atol=1e-6, rtol=1e-5)


def test_full_values_of_a_loaded_and_patched_model_start_from_its_own_weights(sd15):
    """The node may run while the host still holds the model with a LoRA inside."""
    increments = controlnext.unet_file(sd15)
    tensors = full_file(sd15, increments)
    before = weights_of(sd15)
    patched = lora_on(sd15, list(increments)[:3])
    weights_of(patched)
    after = weights_of(with_unet(sd15, tensors))
    for key in increments:
        torch.testing.assert_close(after[key], before[key] + increments[key], atol=1e-6, rtol=1e-6)


def two_files(model):
    """Two files of full values that have some weights in common, and their increments."""
    first = controlnext.unet_file(model)
    second = {key: 0.5 * value.flip(0) for key, value in list(first.items())[:4]}
    return (full_file(model, first), first), (full_file(model, second), second)


@pytest.mark.parametrize("lora", ["none", "before", "between", "after"])
def test_the_values_of_two_files_add_up(lora, sd15):
    (first, of_first), (second, of_second) = two_files(sd15)
    keys, before = list(of_first)[:3], weights_of(sd15)
    model = lora_on(sd15, keys) if lora == "before" else sd15
    model = with_unet(model, first, "full", unet_strength=0.6)
    model = lora_on(model, keys) if lora == "between" else model
    model = with_unet(model, second, "full", unet_strength=-0.3)
    model = lora_on(model, keys) if lora == "after" else model
    after, with_lora = weights_of(model), weights_of(sd15 if lora == "none" else lora_on(sd15, keys))
    for key in of_first:
        expected = with_lora[key] + 0.6 * of_first[key] - 0.3 * of_second.get(key, torch.zeros(()))
        torch.testing.assert_close(after[key], expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(after[key], before[key]) for key in before if key not in of_first)


@pytest.mark.parametrize("merge", ["before", "after"])
def test_a_merge_of_two_models_scales_what_lies_below_it(merge, sd15):
    increments = controlnext.unet_file(sd15)
    other, before = tiny_models.sd15(seed=5), weights_of(sd15)
    of_other = weights_of(other)
    model = sd15 if merge == "after" else ModelMergeSimple().merge(sd15, other, 0.25)[0]
    model = with_unet(model, full_file(sd15, increments), "full")
    model = model if merge == "before" else ModelMergeSimple().merge(model, other, 0.25)[0]
    share = 1.0 if merge == "before" else 0.25
    after = weights_of(model)
    for key, value in increments.items():
        expected = 0.25 * before[key] + 0.75 * of_other[key] + share * value
        torch.testing.assert_close(after[key], expected, atol=1e-5, rtol=1e-5)


def test_values_are_not_copied(sd15):
    tensors = full_file(sd15, controlnext.unet_file(sd15))
    steered = with_unet(sd15, tensors, "full", unet_strength=0.5)
    for key, value in tensors.items():
        ((strength, patch, left, *_),) = steered.patches[f"diffusion_model.{key}"]
        assert patch[1][0].data_ptr() == value.data_ptr()
        assert (strength, left) == (0.5, 0.5)


def test_values_at_full_strength_are_those_of_the_file(sd15):
    tensors = full_file(sd15, controlnext.unet_file(sd15))
    after = weights_of(with_unet(sd15, tensors, "full"))
    assert all(torch.equal(after[key], value) for key, value in tensors.items())


def test_a_reference_model_carries_what_was_learnt_to_another(sd15):
    other = tiny_models.sd15(seed=5, dtype=torch.float64)
    increments = controlnext.unet_file(sd15)
    before = weights_of(other)
    after = weights_of(with_unet(other, full_file(sd15, increments), "full", reference_model=sd15))
    for key in increments:
        torch.testing.assert_close(after[key], before[key] + increments[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "reference", [tiny_models.sdxl, lambda: tiny_models.sd15(model_channels=64)], ids=["sdxl", "wider"]
)
def test_a_reference_of_another_kind_is_refused(reference, sd15):
    tensors = full_file(sd15, controlnext.unet_file(sd15))
    with pytest.raises(ValueError, match="reference_model should be of the same kind as model"):
        with_unet(sd15, tensors, "full", reference_model=reference())


def test_a_reference_without_a_unet_file_is_refused(sd15):
    with pytest.raises(ValueError, match="reference_model is for a UNet file, but tiny control was loaded without one"):
        apply(sd15, controlnext.control(sd15), reference_model=sd15)


def test_two_files_add_up_and_one_file_in_two_nodes_counts_once(sd15):
    one, two = controlnext.unet_file(sd15), controlnext.unet_file(sd15, seed=1)
    before, key = weights_of(sd15), next(iter(one))
    both = weights_of(with_unet(with_unet(sd15, one), two))
    torch.testing.assert_close(both[key], before[key] + one[key] + two[key])
    twice = weights_of(with_unet(with_unet(sd15, one), {k: v.clone() for k, v in one.items()}))
    torch.testing.assert_close(twice[key], before[key] + one[key])


def test_another_strength_for_the_same_file_is_reported_and_another_file_is_not_taken_for_it(sd15, caplog):
    one = controlnext.unet_file(sd15)
    first = with_unet(sd15, one, unet_strength=0.5)
    with caplog.at_level(logging.WARNING):
        assert weights_of(with_unet(first, one, unet_strength=0.5)) and not caplog.text
        with_unet(first, one, unet_strength=1.0)
    assert "in the model already, by an earlier node at unet_strength 0.5" in caplog.text
    key = next(iter(one))
    end = {name: value.clone() for name, value in one.items()}
    end[key][-1, -8:] += 1
    assert len(with_unet(first, end).patches[f"diffusion_model.{key}"]) == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.float16])
def test_full_values_of_narrow_types_keep_their_difference(dtype, sd15):
    key = "input_blocks.0.0.bias"
    before = weights_of(sd15)
    value = (before[key] + 0.75).float().to(dtype)
    after = weights_of(with_unet(sd15, {key: value}, "full"))
    torch.testing.assert_close(after[key], value.to(after[key]), atol=1e-3, rtol=0)


def test_a_unet_file_with_nan_is_refused(sd15):
    tensors = {**controlnext.unet_file(sd15), "out.0.bias": torch.full((32,), torch.nan)}
    with pytest.raises(ValueError, match=r"the unet file should hold finite numbers.*out.0.bias"):
        with_unet(sd15, tensors)


def test_the_hosts_conversion_of_stored_weights_is_used(sd15, monkeypatch):
    """Hosts may store a weight in another form than they compute with."""
    key = "input_blocks.0.0.weight"
    layer = sd15.model.diffusion_model.input_blocks[0][0]
    before = weights_of(sd15)[key]
    monkeypatch.setattr(layer, "convert_weight", lambda weight, inplace=False, **_: 2 * weight, raising=False)
    steered = with_unet(sd15, {key: (2 * before + 1).float()}, "full", reference_model=sd15)
    (patch,) = steered.patches[f"diffusion_model.{key}"]
    torch.testing.assert_close(patch[1][1][0], torch.ones_like(before).float(), atol=1e-5, rtol=1e-5)


def test_a_reference_for_increments_is_not_used_and_that_is_said(sd15, caplog):
    increments = controlnext.unet_file(sd15)
    before = weights_of(sd15)
    with caplog.at_level(logging.WARNING):
        after = weights_of(with_unet(sd15, increments, reference_model=tiny_models.sd15(seed=5, dtype=torch.float64)))
    key = next(iter(increments))
    torch.testing.assert_close(after[key], before[key] + increments[key])
    assert "need no reference_model" in caplog.text


def test_tensors_without_a_place_are_reported(sd15, caplog):
    with caplog.at_level(logging.WARNING):
        with_unet(sd15, {**controlnext.unet_file(sd15), "nonsense.weight": torch.ones(1)})
    assert "1 of 11 tensors have no place in the model and were left out: nonsense.weight" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"nonsense.weight": torch.ones(1)}, "does not fit the UNet of BaseModel: there is no nonsense.weight"),
        ({"input_blocks.0.0.bias": torch.ones(7)}, r"input_blocks.0.0.bias is \(7,\), in the model \(32,\)"),
    ],
)
def test_a_file_for_another_unet_is_refused(tensors, words, sd15):
    with pytest.raises(ValueError, match=words):
        with_unet(sd15, tensors)
    assert not sd15.patches


def test_the_loader_takes_both_parts_of_a_checkpoint(folder, sd15):
    increments = controlnext.unet_file(sd15)
    torch.save({**{f"controlnext.{key}": value for key, value in controlnext.file_for(sd15).items()},
                **{f"unet.{key}": value for key, value in increments.items()}}, folder / "both.bin")  # fmt: skip
    found = load("both.bin", unet_name="both.bin")
    assert set(found.unet.tensors) == set(increments)
    expected = sample(apply(sd15, controlnext.control(sd15, unet=increments)))
    assert torch.equal(sample(apply(sd15, found)), expected)
    assert load("both.bin").unet is None
