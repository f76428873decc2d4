"""Loading and saving UniCon files through the nodes, good ones and bad ones."""

from __future__ import annotations

import json
import pickle

import comfy.utils
import pytest
import torch
from reins.engine.unet import block_names, unet_of
from reins.nodes.unicon.load import read_unicon
from reins.nodes.unicon.load_node import UniConLoader, UniConSave, _choices
from reins.tests.helpers import tiny_models, unicon
from reins.tests.helpers.unicon import GOLDEN_UNET
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(folder_of):
    return folder_of("unicon")


@pytest.fixture
def file():
    return unicon.file_for(tiny_models.sd15())


def sampled(file, **settings):
    model = tiny_models.sd15()
    return tiny_models.sample(unicon.apply_file(model, file), **settings)


def load(name, trigger="auto"):
    return UniConLoader.execute(name, trigger).result[0]


def test_names_of_blocks_are_those_of_the_hosts_table():
    """Which is right where all levels have as many blocks."""
    for model in (tiny_models.sd15(), tiny_models.sdxl(), tiny_models.sd15(**GOLDEN_UNET)):
        table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        for name, block in block_names(unet_of(model)).items():
            assert table[f"{name}.attn1.to_q.weight"] == f"{block.path}.attn1.to_q.weight"


def test_a_pickle_a_safetensors_file_and_what_save_writes_are_the_same(folder, file, monkeypatch, tmp_path):
    torch.save({key: torch.nn.Parameter(value) for key, value in file.items()}, folder / "depth.pth")
    save_file(file, folder / "depth.safetensors")
    expected = sampled(load("depth.pth"))
    assert torch.equal(sampled(load("depth.safetensors")), expected)
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path / "output"))
    UniConSave.execute(load("depth.pth", "near, "), "kept/mine")
    saved = tmp_path / "output" / "unicon" / "kept" / "mine_00001_.safetensors"
    again = read_unicon(saved, saved.name)
    assert torch.equal(sampled(again), expected)
    assert (again.name, again.trigger) == ("depth.pth", "near, ")
    with safe_open(saved, "pt") as opened:
        assert set(opened.keys()) == set(file)
        assert opened.metadata()["unicon.post"] == "conv_fuse"
    with pytest.raises(ValueError, match="inside unicon"):
        UniConSave.execute(again, "../outside")


def of_many_ranks(file):
    """The same file with a rank and a type for each projection."""
    found = dict(file)
    for i, key in enumerate(key for key in file if "lora_" in key):
        rank, value = 1 + i // 2 % 4, file[key]
        shape = (rank, value.shape[1]) if "lora_A" in key else (len(value), rank)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(i)) / 4
        found[key] = drawn.to((torch.float32, torch.float16, torch.bfloat16)[i % 3])
    return found


def test_what_save_writes_has_the_ranks_types_and_numbers_of_the_file(folder, file, monkeypatch, tmp_path):
    given = of_many_ranks(file)
    save_file(given, folder / "many.safetensors")
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path))
    UniConSave.execute(load("many.safetensors"), "many")
    saved = load_file(tmp_path / "unicon" / "many_00001_.safetensors")
    assert saved.keys() == given.keys()
    for key, value in given.items():
        assert saved[key].dtype == value.dtype and torch.equal(saved[key], value)


def test_smaller_ranks_add_what_they_add_with_rows_of_zeros(folder, file):
    """A file whose matrices have zeros in place of what a smaller rank lacks draws the same picture."""
    given = {key: value.float() for key, value in of_many_ranks(file).items()}
    padded = dict(given)
    for key, value in given.items():
        if "lora_" in key:
            missing = 4 - min(value.shape)
            padded[key] = torch.nn.functional.pad(value, (0, 0, 0, missing) if "lora_A" in key else (0, missing))
    for name, weights in (("small", given), ("padded", padded), ("other", file)):
        save_file(weights, folder / f"{name}.safetensors")
    small, large = (sampled(load(f"{name}.safetensors"), steps=1, cfg=1.0) for name in ("small", "padded"))
    assert tiny_models.nearly(small, large, 1e-3)
    assert not tiny_models.nearly(small, sampled(load("other.safetensors"), steps=1, cfg=1.0), 0.1)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_stacked_as_they_are(dtype, folder, file):
    small = {key: value.to(dtype) if "to_k" not in key else value.half() for key, value in file.items()}
    save_file(small, folder / "small.safetensors")
    save_file({key: value.float() for key, value in small.items()}, folder / "large.safetensors")
    assert torch.equal(sampled(load("small.safetensors")), sampled(load("large.safetensors")))


@pytest.mark.parametrize("attention", ["attn1n", "attn1"])
def test_matrices_for_another_width_are_refused_by_the_model(attention, folder, file):
    """Also if only one of three projections has them, which are stacked otherwise."""
    key = next(key for key in file if f".{attention}.to_k.lora_A" in key)
    wrong = {**file, key: torch.zeros(len(file[key]), 5)}
    save_file(wrong, folder / "wrong.safetensors")
    loaded = load("wrong.safetensors")
    with pytest.raises(ValueError, match=r"wrong\.safetensors does not fit .*5"):
        sampled(loaded)


def test_folders_are_offered_by_name_and_their_parts_are_not(folder, file):
    (folder / "mine" / "xy_lora").mkdir(parents=True)
    torch.save(file, folder / "mine" / "model.pth")
    save_file({"unet.x": torch.zeros(1)}, folder / "mine" / "xy_lora" / "pytorch_lora_weights.safetensors")
    save_file(file, folder / "single.safetensors")
    offered = _choices()
    assert {"mine", "mine/model.pth", "single.safetensors", "reins-demo-unicon.safetensors"} <= set(offered)
    assert not any("xy_lora" in name for name in offered)
    assert UniConLoader.define_schema().inputs[0].options == offered
    with pytest.raises(ValueError, match=r"unknown tensors: unet\.x"):
        load("mine")


@pytest.mark.parametrize(
    ("name", "trigger", "expected"),
    [
        ("depth.safetensors", "auto", "depth_map, "),
        ("my_HED_edges.safetensors", "auto", "edge_map, "),
        ("Pose.safetensors", "auto", "pose_map, "),
        ("id.safetensors", "auto", ""),
        ("my_depth_v2.safetensors", "auto", "depth_map, "),
        ("composed_id.safetensors", "auto", ""),
        ("knowledge.safetensors", "auto", ""),
        ("depth.safetensors", "", ""),
        ("id.safetensors", "a photo of ", "a photo of "),
    ],
)
def test_the_trigger_is_that_of_the_name_unless_it_is_said(name, trigger, expected, folder, file):
    save_file(file, folder / name)
    assert load(name, trigger).trigger == expected


def test_the_trigger_of_a_folder_is_that_of_its_own_name(folder, file):
    (folder / "depth_edge" / "id").mkdir(parents=True)
    torch.save(file, folder / "depth_edge" / "id" / "model.pth")
    (folder / "unicon-pose").mkdir()
    torch.save(file, folder / "unicon-pose" / "model.pth")
    assert [load(name).trigger for name in ("depth_edge/id", "depth_edge/id/model.pth")] == ["", ""]
    assert [load(name).trigger for name in ("unicon-pose", "unicon-pose/model.pth")] == ["pose_map, "] * 2


def test_the_trigger_of_the_metadata_goes_before_the_name(folder, file):
    save_file(file, folder / "depth.safetensors", {"unicon.trigger": "far, "})
    assert load("depth.safetensors").trigger == "far, "
    assert load("depth.safetensors", "near, ").trigger == "near, "


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_size_files_act_nearly_alike(dtype, folder, file):
    save_file(file, folder / "full.safetensors")
    save_file({key: value.to(dtype) for key, value in file.items()}, folder / "half.safetensors")
    half, full = (sampled(load(name), steps=1, cfg=1.0) for name in ("half.safetensors", "full.safetensors"))
    assert tiny_models.nearly(half, full, 0.3) and not torch.equal(half, full)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the bomb went off')",))


def bad_files(file):
    whole = torch.save
    nan = {**file, next(iter(file)): torch.full_like(next(iter(file.values())), torch.nan)}
    return {
        "bomb.pth": (
            lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})),
            "asks to run code|cannot be read",
        ),
        "cut.pth": (
            lambda path: (whole(file, path), path.write_bytes(path.read_bytes()[:999])),
            "cannot be read|not opened",
        ),
        "cut.safetensors": (
            lambda path: (save_file(file, path), path.write_bytes(path.read_bytes()[:999])),
            "cannot be read",
        ),
        "nan.safetensors": (lambda path: save_file(nan, path), "finite"),
        "lora.safetensors": (
            lambda path: save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, path),
            "is not a UniCon",
        ),
        "text.pth": (lambda path: path.write_text("hello"), "cannot be read|not opened"),
    }


@pytest.mark.parametrize(
    "name", ["bomb.pth", "cut.pth", "cut.safetensors", "nan.safetensors", "lora.safetensors", "text.pth"]
)
def test_a_bad_file_is_refused_and_the_next_one_loads(name, folder, file):
    write, message = bad_files(file)[name]
    write(folder / name)
    with pytest.raises(ValueError, match=message):
        load(name)
    save_file(file, folder / "good.safetensors")
    assert sampled(load("good.safetensors")).isfinite().all()


def test_a_name_that_leads_out_of_the_folders_is_refused(folder):
    with pytest.raises(ValueError, match="not in the unicon folders"):
        load("../secret.safetensors")


def test_the_metadata_may_be_absent(folder, file):
    save_file(file, folder / "plain.safetensors")
    assert json.dumps(load("plain.safetensors").name) == '"plain.safetensors"'
