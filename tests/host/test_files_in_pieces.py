"""Files that are cut anywhere, changed anywhere, in parts, or quantised: a clear sentence, or the tensors."""

from __future__ import annotations

import json

import pytest
import torch
from reins.engine.loading import read_file, read_tensor
from reins.models.foreign_files import FOUR_BITS
from safetensors.torch import save_file

FORMATS = {"zip": "small.bin", "legacy": "small.bin", "safetensors": "small.safetensors"}
WEIGHTS = {"a": torch.ones(2, 3), "b": torch.arange(3)}
CHANGED = {"zip": 3, "legacy": 1, "safetensors": 1}  # one in so many bytes: most of a zip file are zeros


def small(kind, folder):
    path = folder / FORMATS[kind]
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    return path, path.read_bytes()


def refused(read, path):
    """Whether a file is refused with one sentence that names it. Any error but ValueError fails the test."""
    try:
        read(path)
    except ValueError as error:
        assert str(error).startswith(path.name) and "\n" not in str(error)
        return True
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_at_any_place_is_refused_in_words(kind, tmp_path):
    path, whole = small(kind, tmp_path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refused(read_file, path), length


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_with_a_changed_byte_at_any_place_is_read_or_refused_in_words(kind, tmp_path):
    path, whole = small(kind, tmp_path)
    for place in range(0, len(whole), CHANGED[kind]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        refused(read_file, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [False, True])
def test_one_tensor_that_is_cut_at_any_place_is_refused_in_words(old, tmp_path):
    path = tmp_path / "one.pt"
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refused(read_tensor, path), length


def in_parts(folder, suffix=".safetensors"):
    """Two parts and their index, as diffusers names them."""
    names = [f"model-0000{number}-of-00002{suffix}" for number in (1, 2)]
    for name, key in zip(names, WEIGHTS, strict=True):
        (save_file if suffix == ".safetensors" else torch.save)({key: WEIGHTS[key]}, folder / name)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(WEIGHTS, names, strict=True))}))
    return [*names, index.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("chosen", range(3), ids=["first part", "second part", "index"])
def test_all_parts_of_a_file_are_read_whichever_is_chosen(chosen, suffix, tmp_path):
    read = read_file(tmp_path / in_parts(tmp_path, suffix)[chosen])
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("chosen", [0, 2], ids=["part", "index"])
def test_a_part_that_is_not_there_is_named(chosen, tmp_path):
    names = in_parts(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=r"in 2 parts, but model-00002-of-00002.safetensors is not beside it.*index"):
        read_file(tmp_path / names[chosen])


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_an_index_without_parts_is_refused_in_words(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json should be the index of a file in parts, but names none"):
        read_file(tmp_path / "model.safetensors.index.json")


PACKED = {
    "comfy_quant": ({"a.weight": torch.zeros(4, 4), "a.comfy_quant": torch.zeros(4, dtype=torch.uint8)}, "by ComfyUI"),
    "scaled fp8": ({"scaled_fp8": torch.zeros(2), "a.scale_weight": torch.ones(1)}, r"by ComfyUI \(scaled fp8\)"),
    "nf4": (
        {
            "a.weight": torch.zeros(8, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(1),
            "a.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
        },
        "by bitsandbytes, four bits",
    ),
    "int8": ({"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)}, "by bitsandbytes, eight bits"),
    "gptq": ({"a.qweight": torch.zeros(4, 4, dtype=torch.int32)}, "by GPTQ or AWQ"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_a_quantised_adapter_file_is_refused_by_what_it_is(name, tmp_path):
    tensors, words = PACKED[name]
    save_file(tensors, tmp_path / "packed.safetensors")
    with pytest.raises(ValueError, match=rf"packed\.safetensors should hold .* quantised {words}"):
        read_file(tmp_path / "packed.safetensors")


def test_four_bit_numbers_are_refused_by_what_they_are(tmp_path):
    if FOUR_BITS is None:
        pytest.skip("this torch has no four-bit numbers")
    save_file({"a": torch.zeros(4, 4, dtype=torch.uint8).view(FOUR_BITS)}, tmp_path / "packed.safetensors")
    with pytest.raises(ValueError, match=r"quantised as four-bit numbers \(float4_e2m1fn_x2\)\. Choose the file"):
        read_file(tmp_path / "packed.safetensors")
