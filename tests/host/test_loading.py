"""Weights from files: what is refused and why, and that the host owns what is loaded."""

from __future__ import annotations

import pickle

import comfy.sampler_helpers
import comfy.utils
import pytest
import torch
from reins.engine.loading import check_finite, flatten, load_network, load_with, read_file
from reins.tests.helpers.tiny_models import sample
from safetensors.torch import save_file
from torch import nn


class Small(nn.Module):
    def __init__(self, operations, device, dtype):
        super().__init__()
        self.first = operations.Linear(3, 4, device=device, dtype=dtype)
        self.second = operations.Linear(4, 2, device=device, dtype=dtype)


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (4, 3), "first.bias": (4,), "second.weight": (2, 4), "second.bias": (2,)}
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["good.safetensors", "good.bin", "good.pt", "good.ckpt", "good.pth"])
def test_files_of_every_format_are_read(name, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(weights(), tmp_path / name)
    read = read_file(tmp_path / name)
    assert all(torch.equal(read[key], value) for key, value in weights().items())


GROUPED = {
    "plain": lambda: weights(),
    "two groups": lambda: {"a": weights(), "b": {"x": torch.zeros(1)}},
    "one group": lambda: {"a": weights()},
    "a training run": lambda: {"state_dict": weights(), "step": 3},
    "one tensor": lambda: {"a": torch.ones(2)},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("groups", GROUPED)
def test_groups_of_a_pickle_are_read_as_the_host_reads_them(groups, old, tmp_path):
    path = tmp_path / "groups.bin"
    torch.save(GROUPED[groups](), path, _use_new_zipfile_serialization=not old)
    expected = flatten(comfy.utils.load_torch_file(str(path), safe_load=True))
    read = read_file(path)
    assert list(read) == list(expected)
    assert all(read[key] is value or torch.equal(read[key], value) for key, value in expected.items() if key != "step")


@pytest.mark.parametrize("disabled", [False, True])
def test_a_pickle_is_read_by_pages_unless_the_user_forbids_it(disabled, tmp_path, monkeypatch):
    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", disabled, raising=False)
    torch.save(weights(), tmp_path / "a.bin")
    asked, load = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: asked.append(kwargs.get("mmap")) or load(*args, **kwargs)
    )
    read = read_file(tmp_path / "a.bin")
    assert [bool(by_pages) for by_pages in asked] == [not disabled]
    assert all(torch.equal(read[key], value) for key, value in weights().items())


def hostile(path):
    torch.save({"first.weight": Hostile()}, path)


def old_pickle(path):
    path.write_bytes(pickle.dumps(Hostile()))


def truncated(path):
    (save_file if path.suffix == ".safetensors" else torch.save)(weights(), path)
    path.write_bytes(path.read_bytes()[:-40])


def text(path):
    path.write_text("<html>404</html>")


def empty(path):
    path.write_bytes(b"")


def no_tensors(path):
    torch.save({"step": 3, "config": {"a": 1}}, path)


def a_list(path):
    torch.save([torch.zeros(2)], path)


BAD = [
    (hostile, "f.bin"), (old_pickle, "f.ckpt"), (truncated, "f.pt"), (truncated, "f.safetensors"), (text, "f.bin"),
    (text, "f.safetensors"), (empty, "f.pt"), (empty, "f.safetensors"), (no_tensors, "f.pth"), (a_list, "f.pth"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("damage", "name"), BAD)
def test_a_bad_file_is_refused_with_one_clear_sentence(damage, name, tmp_path, capsys):
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        read_file(tmp_path / name)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.safetensors cannot be read"):
        read_file(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_keeps_the_type_of_its_file_and_answers_in_that_of_the_input(dtype):
    patcher = load_network(Small, weights(dtype), "small")
    assert patcher.model.first.weight.dtype == dtype
    out = patcher.model.second(patcher.model.first(torch.ones(1, 3)))
    first = torch.nn.functional.linear(
        torch.ones(1, 3), *(weights(dtype)[f"first.{p}"].float() for p in ("weight", "bias"))
    )
    expected = torch.nn.functional.linear(first, *(weights(dtype)[f"second.{p}"].float() for p in ("weight", "bias")))
    torch.testing.assert_close(out, expected)


def test_a_network_has_the_tensors_of_the_file_and_no_copy():
    tensors = weights(torch.float16)
    network = load_network(Small, tensors, "small").model
    assert all(value.data_ptr() == tensors[key].data_ptr() for key, value in network.state_dict().items())
    assert not any(value.requires_grad or value.is_meta for value in network.parameters())


@pytest.mark.parametrize(
    "types",
    [(torch.float16, torch.bfloat16), (torch.float32, torch.float16), (torch.float8_e4m3fn, torch.float16)],
    ids=str,
)
def test_a_file_of_mixed_types_keeps_them_and_answers_in_the_type_of_the_input(types):
    mixed = {key: value.to(types[i % 2]) for i, (key, value) in enumerate(weights().items())}
    network = load_network(Small, mixed, "small").model
    assert [value.dtype for value in network.state_dict().values()] == [value.dtype for value in mixed.values()]
    exact = load_network(Small, {key: value.float() for key, value in mixed.items()}, "small").model
    x = torch.ones(1, 3)
    torch.testing.assert_close(network.second(network.first(x)), exact.second(exact.first(x)))


def test_whole_numbers_are_taken_as_weights():
    whole = weights() | {"first.bias": torch.arange(4)}
    network = load_network(Small, whole, "small").model
    assert torch.equal(network.first.bias, torch.arange(4.0))


NUMBERS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 7, 14])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(dtype, bad, place):
    values = torch.linspace(-3, 3, 15)
    check_finite({"fine": values.to(dtype), "empty": torch.empty(0, 4, dtype=dtype)}, "file")
    values[place] = float(bad)
    values = values.view(3, 5).to(dtype)
    if values.float().isfinite().all():
        pytest.skip("this type has no such number")
    with pytest.raises(ValueError, match=r"some are not \(NaN\): bad\. Download"):
        check_finite({"fine": torch.ones(3), "bad": values}, "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_numbers_are_finite_though_their_sum_is_not(dtype):
    largest = torch.full([4096], torch.finfo(dtype).max, dtype=dtype)
    assert not largest.sum().isfinite()
    check_finite({"large": largest, "of both signs": torch.cat([largest, -largest])}, "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_infinite_numbers_that_cancel_are_found(dtype):
    values = torch.ones(4096, dtype=dtype)
    values[7], values[4000] = float("inf"), float("-inf")
    with pytest.raises(ValueError, match="some are not"):
        check_finite({"bad": values}, "file")


def test_wrong_tensors_are_named():
    wrong = weights()
    del wrong["second.bias"]
    wrong["third.weight"] = torch.zeros(1)
    wrong["first.weight"] = torch.zeros(4, 5)
    with pytest.raises(ValueError, match="small does not fit") as error:
        load_network(Small, wrong, "small")
    for words in ("lacks second.bias", "unknown third.weight", "first.weight should be (4, 3) but is (4, 5)"):
        assert words in str(error.value)


def test_many_faults_are_counted_not_listed():
    with pytest.raises(ValueError, match="and 6 more"):
        load_network(Small, weights() | {f"x{i}": torch.zeros(1) for i in range(10)}, "small")


def test_the_host_loads_the_network_with_the_model_and_clones_share_its_weights(sd15):
    small, other = load_network(Small, weights(), "small"), load_network(Small, weights(), "other")
    model = load_with(load_with(sd15, small), other).clone().clone()
    assert [patcher.model for patcher in model.model_patches_models()] == [small.model, other.model]
    assert model.clone_has_same_weights(load_with(model, small))
    sample(model, steps=2)
    loaded = [patcher.model for patcher in comfy.model_management.loaded_models()]
    assert small.model in loaded and other.model in loaded
    assert sd15.model_patches_models() == []


def test_layers_that_wait_for_their_weights_are_compared_with_the_file_all_the_same(monkeypatch):
    """As Linear does with DynamicVRAM, which the newest hosts have."""
    memory = pytest.importorskip("comfy.memory_management")
    given = weights()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "aimdo_enabled", True)
        network = load_network(Small, given, "file").model
        with pytest.raises(ValueError, match=r"first.weight should be \(4, 3\) but is \(4, 5\)"):
            load_network(Small, {**given, "first.weight": torch.zeros(4, 5)}, "file")
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())
