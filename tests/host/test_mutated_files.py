"""Files that came to harm, into every loader: a clear error each, or the network that was meant; never code that runs.

The files are those that ship with the demo model, or what the save nodes write.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.demo.training.numbers import load_base
from reins.engine.folders import path_of
from reins.models.h_space.files import Directions
from reins.nodes.controlnext.nodes import ControlNeXtApply, ControlNeXtLoader
from reins.nodes.h_space.direction import StoredDirection
from reins.nodes.h_space.files_node import HDirectionLoader
from reins.nodes.h_space.load import save_direction
from reins.nodes.h_space.ranges import load_metric
from reins.nodes.inputs.folders import DEMO_WEIGHTS
from reins.nodes.ip_adapter.load_node import IPAdapterLoader
from reins.nodes.ip_adapter.prompt import ImageTokens
from reins.nodes.ip_adapter.tokens import save_tokens
from reins.nodes.ip_adapter.tokens_node import LoadImageTokens
from reins.nodes.prompt_diffusion.nodes import PromptDiffusionLoader
from reins.nodes.unicon.apply_node import UniConApply
from reins.nodes.unicon.load_node import UniConLoader
from reins.tests.helpers.lpips import drawn
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file
from safetensors.torch import load_file, save_file
from torch import Tensor

SEEDS = range(5)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LONGEST = 600  # characters of an error that a person reads


class Loader(NamedTuple):
    """What reads a file of that folder; where only the model tells what is wrong, its Apply node too."""

    folder: str
    load: Callable[[ModelPatcher, str], object]
    prefix: str = ""  # of what counts in its file


def controlnext(model: ModelPatcher, name: str, unet: str = "none") -> object:
    (control,) = ControlNeXtLoader.execute(name, unet).result
    return ControlNeXtApply.execute(model, control, torch.zeros(1, 64, 64, 3))


def unicon(model: ModelPatcher, name: str) -> object:
    (file,) = UniConLoader.execute(name).result
    partner, words = {"samples": torch.zeros(1, 3, 32, 32)}, [[torch.zeros(1, 2, 64), {}]]
    return UniConApply.execute(model, file, partner, "condition", words, words)


TRANSFORMER_FILES = {
    "ip-adapter for SD3": sd3_file, "ip-adapter of XLabs": xlabs_file, "ip-adapter for Flux": instantx_flux_file,
}  # fmt: skip
LOADERS = {
    **{
        name: Loader("ipadapter", lambda model, name: IPAdapterLoader.execute(name))
        for name in ("ip-adapter", *TRANSFORMER_FILES)
    },
    "controlnext": Loader("controlnext", controlnext, "controlnext."),
    "controlnext unet": Loader(
        "controlnext", lambda model, name: controlnext(model, "whole.safetensors", name), "unet."
    ),
    "unicon": Loader("unicon", unicon),
    "prompt diffusion": Loader("controlnet", lambda model, name: PromptDiffusionLoader.execute(name)),
    "tokens": Loader("image_tokens", lambda model, name: LoadImageTokens.execute(name)),
    "direction": Loader("h_space", lambda model, name: HDirectionLoader.execute(name)),
    "lpips": Loader("lpips", lambda model, name: load_metric(path_of("lpips", name))),
}
# A number of another type is the same number, and of a header only names and places are read.
HARMLESS = {(name, kind) for name in LOADERS for kind in ("type_changed", "header_damaged")}
# Files may hold any part of the UNet; what is unknown is left out with a warning; 1x1 convolutions are linear layers.
HARMLESS |= {("controlnext unet", kind) for kind in ("key_dropped", "key_renamed", "dimension_added")}
SHIPPED = {
    "ip-adapter": "ipadapter/reins-demo-ip-adapter", "controlnext": "controlnext/reins-demo-controlnext",
    "controlnext unet": "controlnext/reins-demo-controlnext", "unicon": "unicon/reins-demo-unicon",
    "prompt diffusion": "controlnet/reins-demo-prompt-diffusion",
}  # fmt: skip


def whole(name: str, path: Path) -> None:
    """A file as it should be."""
    if name == "tokens":
        save_tokens(ImageTokens(*torch.randn((3, 1, 4, 16)), torch.ones(1), "an adapter", "its mark"), path)
    elif name == "direction":
        directions = Directions(torch.randn(2, 64, 4, 4), (5.0, 1.0))
        save_direction(StoredDirection("a direction", directions, {}), path)
    elif name == "lpips":
        save_file({key: value.half() for key, value in drawn().items()}, path)
    elif name in TRANSFORMER_FILES:
        save_file(TRANSFORMER_FILES[name](), path)
    else:
        path.write_bytes((DEMO_WEIGHTS / f"{SHIPPED[name]}.safetensors").read_bytes())


class Bomb:
    """Runs code where a file is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def cut(path: Path, chance: random.Random, prefix: str = "") -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def header_damaged(path: Path, chance: random.Random, prefix: str = "") -> None:
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(3):
        data[chance.randrange(8 + length)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def header_lies(path: Path, chance: random.Random, prefix: str = "") -> None:
    """Well-formed, but one tensor lies behind the end of the file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    key = chance.choice([key for key in header if key != "__metadata__"])
    start, end = header[key]["data_offsets"]
    header[key]["data_offsets"] = [start + len(data), end + len(data)]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def in_tensors(change: Callable[[dict[str, Tensor], str, random.Random], None]) -> Callable[..., None]:
    def write(path: Path, chance: random.Random, prefix: str = "") -> None:
        tensors = load_file(path)
        change(tensors, chance.choice(sorted(key for key in tensors if key.startswith(prefix))), chance)
        path.unlink()
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)

    write.__name__ = change.__name__
    return write


def key_dropped(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    del tensors[key]


def key_renamed(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    tensors[key + "_"] = tensors.pop(key)


def shape_changed(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    old = tensors[key]
    tensors[key] = torch.cat([old, old]) if old.ndim else old.expand(3)


def dimension_added(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    tensors[key] = tensors[key][None, None]


def type_changed(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    tensors[key] = tensors[key].to(chance.choice([torch.int8, torch.int64, torch.bool, torch.float16, torch.float64]))


def not_a_number(tensors: dict[str, Tensor], key: str, chance: random.Random) -> None:
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[chance.randrange(tensors[key].numel())] = chance.choice([torch.nan, torch.inf])


def pickled_bomb(path: Path, chance: random.Random, prefix: str = "") -> None:
    """One value among the right tensors asks to run code; the file's name ends as a pickle's may."""
    tensors = load_file(path)
    path.unlink()  # the tensors are views of it
    torch.save({**tensors, chance.choice("ab"): Bomb(path.with_suffix(".mark"))}, path)


MUTATIONS = [
    cut, header_damaged, header_lies, pickled_bomb,
    *map(in_tensors, (key_dropped, key_renamed, shape_changed, dimension_added, type_changed, not_a_number)),
]  # fmt: skip


@pytest.fixture(scope="module")
def demo_model() -> ModelPatcher:
    return load_base()[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("name", LOADERS)
def test_a_mutated_file_is_refused_in_words_or_read_as_it_was_meant(name, mutate, seed, folder_of, demo_model):
    loader, chance = LOADERS[name], random.Random(f"{name} {seed}")
    folder = folder_of(loader.folder)
    is_pickle = mutate is pickled_bomb and name != "tokens"  # which are safetensors alone
    path = folder / f"mutated{chance.choice(PICKLES) if is_pickle else '.safetensors'}"
    for file in (folder / "whole.safetensors", path):
        whole(name, file)
    mutate(path, chance, loader.prefix)
    try:
        loader.load(demo_model, path.name)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < LONGEST, error
        assert str(error).rstrip().endswith(".")
    else:
        assert (name, mutate.__name__) in HARMLESS
    assert not path.with_suffix(".mark").exists()
    assert demo_model.patches == {} and demo_model.model_options["transformer_options"] == {}
    loader.load(demo_model, "whole.safetensors")


def test_the_bomb_goes_off_where_a_file_is_read_without_care(tmp_path):
    """The control of what is tested above."""
    path = tmp_path / "bomb.pt"
    torch.save({"a": Bomb(path.with_suffix(".mark"))}, path)
    torch.load(path, weights_only=False)
    assert path.with_suffix(".mark").exists()
