"""Reads files, and makes networks of their weights.

The weights belong to the host. It loads a network together with the model, counts its memory, and offloads it. What is
wrong with a file is said before the run begins.

The weights of a network are the file's own tensors, in the types of the file, and the system reads a file's pages as
they are needed (mmap). So a file that is in use cannot be replaced on Windows, as that of a checkpoint. The host's
option --disable-mmap turns this off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from typing import Any
from zipfile import BadZipFile, is_zipfile

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..models.foreign_files import SHOWN, few, quantised_by
from ..models.sharded_files import parts_of
from .entries import KEY

StateDict = dict[str, Tensor]
# What torch, safetensors and the host raise if a file is cut off, has a changed byte or is no model file. The tests try
# each place of a small file of each format.
DAMAGE = (
    SafetensorError, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, BadZipFile, StructError,
)  # fmt: skip


def read_file(path: str | Path) -> StateDict:
    """Returns the tensors of a .safetensors, .bin, .pt, .pth or .ckpt file.

    Pickles are read without running their code. Groups of tensors become prefixes of their names. If the path is that
    of one part of a file, or of the index of its parts, all parts are read.
    Raises ValueError if the file is damaged, unsafe, quantised, lacks a part or holds no tensors.
    """
    weights = {key: value for part in parts_of(Path(path)) for key, value in _read_one(part).items()}
    if (how := quantised_by(weights)) is not None:
        raise ValueError(
            f"{Path(path).name} should hold numbers of 16 or 32 bits, but its weights are quantised {how}. Choose the "
            f"file that was not quantised."
        )
    return weights


def _read_one(path: Path) -> StateDict:
    weights = _opened(path, lambda: _load(path))
    flat = flatten(weights) if isinstance(weights, dict) else {}
    if not any(isinstance(value, Tensor) for value in flat.values()):
        raise ValueError(
            f"{path.name} should hold named tensors but holds {type(weights).__name__}. Choose a model file."
        )
    return flat


def _load(path: Path) -> Any:
    load = _load_zipped if _is_zipped(path) else partial(comfy.utils.load_torch_file, safe_load=True)
    return load(str(path))


def _is_zipped(path: str | Path) -> bool:
    """Whether a file is a pickle that torch can read by pages."""
    is_pickle = Path(path).is_file() and Path(path).suffix.lower() not in (".safetensors", ".sft")
    return is_pickle and not getattr(comfy.utils, "DISABLE_MMAP", False) and is_zipfile(path)


def _load_zipped(path: str) -> Any:
    """Returns what a pickle holds, without the group that a training run puts around its weights, as the host does."""
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict):
        return loaded
    inner = loaded.get("state_dict", next(iter(loaded.values())) if len(loaded) == 1 else None)
    return inner if isinstance(inner, dict) else loaded


def read_tensor(path: str | Path) -> Tensor:
    """Returns the one tensor (any, ...) of a file that torch saved. Raises ValueError if it holds anything else."""
    tensor = _opened(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{Path(path).name} should hold one tensor but holds {type(tensor).__name__}. Save it again.")
    return tensor


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file. Files of other kinds have none.

    Raises ValueError if the file is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    return _opened(path, lambda: _metadata(path))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _opened(path: str | Path, load: Callable[[], Any]) -> Any:
    name = Path(path).name
    try:
        return load()
    except UnpicklingError as error:
        raise ValueError(
            f"{name} was not opened: it should hold only tensors, but it is damaged or asks to run code. "
            f"Use a .safetensors file or download it again."
        ) from error
    except DAMAGE as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} cannot be read: {first_line}. Download the file again.") from error


def flatten(groups: Mapping[str, Any], prefix: str = "") -> StateDict:
    """Returns nested groups as one dictionary, {"a": {"b": value}} as {"a.b": value}."""
    flat: StateDict = {}
    for key, value in groups.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class Outline(comfy.ops.disable_weight_init):
    """Layers whose shapes are known before there are weights, so that a network can be compared with a file.

    With DynamicVRAM, from ComfyUI 0.33 on, the host's linear layers get their shapes from the file and take any.
    """

    Linear = nn.Linear


def shapes_of(outline: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's tensors by name. Its layers must have shapes, as those of Outline do."""
    return {key: tuple(value.shape) for key, value in outline.state_dict().items()}


def load_network(make: Callable[..., nn.Module], weights: Mapping[str, Tensor], name: str) -> ModelPatcher:
    """Returns a host patcher for `make(operations=..., device=..., dtype=...)` with exactly these weights.

    `name` is that of the file, for errors. Raises ValueError if the weights do not fit the network or are not finite.
    """
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    check_finite(weights, name)
    outline = make(operations=Outline, device=torch.device("meta"), dtype=torch.float32)
    check_tensors(shapes_of(outline), weights, name)
    dtype = widest(weights)
    network = make(operations=comfy.ops.manual_cast, device=torch.device("meta"), dtype=dtype)
    numbers = {key: value if value.is_floating_point() else value.to(dtype) for key, value in weights.items()}
    network.load_state_dict(numbers, assign=True)
    network.eval().requires_grad_(False)
    return ModelPatcher(network, load_device=load_device, offload_device=offload_device)


def widest(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Returns the type that holds all numbers of a file.

    Numbers of 8 bits count as bfloat16, for nothing computes in them.
    """
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()} or {torch.float32}
    return reduce(torch.promote_types, (dtype if dtype.itemsize > 1 else torch.bfloat16 for dtype in dtypes))


def check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError if some numbers are not finite."""
    not_finite = [key for key, value in weights.items() if value.is_floating_point() and not _finite(value)]
    if not_finite:
        raise ValueError(
            f"{name} should hold finite numbers, but some are not (NaN): {few(not_finite)}. Download the file again."
        )


def _finite(values: Tensor) -> bool:
    """Whether all numbers are finite. A sum is not if one of its numbers is not, and is the fastest look at them.

    The sum of large numbers may be infinite too. Then the extremes tell, which are NaN if one number is.
    """
    if not values.numel():
        return True
    numbers = values if values.dtype.itemsize > 1 else values.float()
    return bool(numbers.sum().isfinite()) or all(bool(extreme.isfinite()) for extreme in numbers.aminmax())


def check_tensors(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError if the tensors are not exactly the expected ones, by name and shape."""
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    shapes = [
        f"{key} should be {expected[key]} but is {tuple(value.shape)}"
        for key, value in weights.items()
        if key in expected and tuple(value.shape) != expected[key]
    ]
    faults = [*_named("lacks", missing), *_named("has unknown", unknown), *shapes[:SHOWN]]
    if faults:
        raise ValueError(f"{name} does not fit: {'; '.join(faults)}. Choose a file made for this node.")


@dataclass(frozen=True, eq=False)
class LoadedWithModel:
    """An item among a model's patches, by which the host loads further networks together with the model.

    The host's list of additional models would do it too, but then the host loads the model anew for every clone.
    """

    networks: tuple[ModelPatcher, ...]

    def models(self) -> list[ModelPatcher]:
        """Returns the networks. The host asks for them by this name."""
        return list(self.networks)

    def to(self, *_: object) -> LoadedWithModel:
        """Returns itself. The host calls this with a device and with a type, but moves the networks without it."""
        return self

    def __deepcopy__(self, memo: dict) -> LoadedWithModel:
        return self


def load_with(model: ModelPatcher, *networks: ModelPatcher) -> ModelPatcher:
    """Returns a clone of `model` that the host loads together with these networks."""
    model = model.clone()
    model.set_model_patch(LoadedWithModel(networks), KEY)
    return model


def _named(fault: str, keys: Sequence[Any]) -> list[str]:
    return [f"{fault} {few(keys)}"] if keys else []
