"""The weights of a model without any patches, whichever clone of the model is loaded now.

A pack may keep weights packed (GGUF, NF4): the numbers of the tensor are not those of the weight, and its shape is
another. The layer knows the true shape. It unpacks the weight as ComfyUI-GGUF's layers do, or the weight is refused.
"""

from __future__ import annotations

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor, nn

RUN_LENGTH = 64  # numbers that lie together in a large tensor, where some are looked at


class Unpatched:
    """The weights whose names begin with a prefix. A weight that is asked for is float32 on the CPU."""

    def __init__(self, model: ModelPatcher, prefix: str) -> None:
        self._patcher = model
        self._names = {key for key in model.model_state_dict() if key.startswith(prefix)}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def __getitem__(self, key: str) -> Tensor:
        return self._numbers(key).to("cpu", torch.float32).as_subclass(Tensor)

    def some(self, key: str) -> Tensor:
        """Returns `some_numbers` of a weight (n,)."""
        return some_numbers(self._numbers(key).as_subclass(Tensor)).to("cpu", torch.float32)

    def _numbers(self, key: str) -> Tensor:
        """Returns a weight in its true shape, in the type and on the device that it is kept in."""
        weight, _, convert = get_key_weight(self._patcher.model, key)
        # What the host put aside when it loaded a patched clone. All clones share these.
        if (kept := self._patcher.backup.get(key)) is not None:
            weight = kept.weight
        if (kept := self._patcher.hook_backup.get(key)) is not None:
            weight = kept[0]
        if convert is not None:
            weight = convert(weight, inplace=False)
        shape = self.shape(key)
        if _is_packed(weight, shape):
            weight = _unpacked(self._layer(key), weight, shape, key)
        return weight

    def is_packed(self, key: str) -> bool:
        """Returns whether the numbers that are kept are not those of the weight."""
        weight, _, convert = get_key_weight(self._patcher.model, key)
        return convert is not None or _is_packed(weight, self.shape(key))

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a weight without reading it."""
        if key not in self._shapes:
            self._shapes[key] = self._shape(key)
        return self._shapes[key]

    def _shape(self, key: str) -> tuple[int, ...]:
        layer = self._layer(key)
        if key.endswith(".weight"):
            if isinstance(layer, nn.Linear):
                return (layer.out_features, layer.in_features)
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return tuple(comfy.utils.get_attr(self._patcher.model, key).shape)

    def _layer(self, key: str) -> nn.Module:
        return comfy.utils.get_attr(self._patcher.model, key.rpartition(".")[0])


def some_numbers(values: Tensor) -> Tensor:
    """Returns some of the numbers of a tensor (any, ...), flat (n,): one in 65 of a large one, all of a small one.

    They are runs of numbers that lie together, so that most of a file is not read.
    """
    period = RUN_LENGTH * (
        RUN_LENGTH + 1
    )  # no multiple of the usual lengths of rows, so that runs begin at different columns
    if values.numel() <= period:
        return values.flatten()
    runs = values.numel() // period
    return values.flatten()[: runs * period].view(runs, period)[:, :RUN_LENGTH].flatten()


def _is_packed(weight: Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(weight.size()) != shape or not weight.is_floating_point()


def _unpacked(layer: nn.Module, weight: Tensor, shape: tuple[int, ...], key: str) -> Tensor:
    """Returns a packed weight of a layer in its true shape.

    Raises ValueError if the layer does not tell how it is packed.
    """
    unpack = getattr(layer, "get_weight", None)
    unpacked = None if unpack is None else unpack(_bare(weight), torch.float32)
    if not isinstance(unpacked, Tensor) or tuple(unpacked.size()) != shape:
        raise ValueError(
            f"{key} of the model is packed ({weight.dtype}, {tuple(weight.size())} for {shape}), and its layer "
            f"({type(layer).__name__}) does not say how. Set unet_mode to increment if the file holds increments, or "
            f"connect a reference_model that is not packed."
        )
    return unpacked


def _bare(weight: Tensor) -> Tensor:
    """Returns the same tensor, of the same class, without the patches that a loaded clone has hung on it as a list."""
    bare = weight.as_subclass(type(weight))
    bare.__dict__.update({name: value for name, value in vars(weight).items() if not isinstance(value, list)})
    return bare
