"""Weights from files: what is refused and why, and that the host owns what is loaded."""

from __future__ import annotations

import pickle

import comfy.sampler_helpers
import pytest
import torch
from reins.engine.loading import load_network, load_with, read_file
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
