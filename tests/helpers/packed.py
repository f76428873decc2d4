"""A pack that keeps weights packed, as ComfyUI-GGUF does: bytes in another shape, patches on the tensor itself."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import tiny_models
from torch import Tensor, nn

LEVELS = 255
HEAD = 8  # bytes of each row before its numbers: their least value and their step, as float32


class Packed(Tensor):
    """Rows of bytes. `true_shape` is that of the weight; `shape` tells it instead of that of the bytes if `tells`."""

    true_shape: tuple[int, ...]
    tells: bool

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.true_shape) if getattr(self, "tells", False) else self.size()

    def detach(self) -> Packed:
        return self

    def clone(self, *_: Any, **__: Any) -> Packed:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Packed:
        """Carries what hangs on the tensor along."""
        new = super().to(*args, **kwargs)
        new.__dict__.update(self.__dict__)
        return new


def pack(weight: Tensor, tells: bool) -> Packed:
    """Each row with 8 bits for each number."""
    rows = weight.detach().float().reshape(len(weight), -1)
    least = rows.amin(1, keepdim=True)
    step = (rows.amax(1, keepdim=True) - least).clamp_min(1e-12) / LEVELS
    head = torch.cat([least, step], 1).contiguous().view(torch.uint8)
    packed = torch.cat([head, ((rows - least) / step).round().to(torch.uint8)], 1).as_subclass(Packed)
    packed.true_shape, packed.tells = tuple(weight.shape), tells
    return packed


def unpack(packed: Packed) -> Tensor:
    """The weight in its true shape."""
    rows = packed.as_subclass(Tensor)
    least, step = rows[:, :HEAD].contiguous().view(torch.float32).chunk(2, 1)
    return (rows[:, HEAD:] * step + least).reshape(packed.true_shape)


class _Layer:
    def get_weight(self, weight: Packed, dtype: torch.dtype) -> Tensor:
        """The weight with the patches that hang on the tensor."""
        value = unpack(weight).to(dtype)
        for patches, key in getattr(weight, "patches", ()):
            value = comfy.lora.calculate_weight(patches, value, key)
        return value


class PackedLinear(_Layer, comfy.ops.disable_weight_init.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_weight(self.weight, x.dtype), self.bias)


class PackedConv2d(_Layer, comfy.ops.disable_weight_init.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.get_weight(self.weight, x.dtype), self.bias)


class MuteLinear(comfy.ops.disable_weight_init.Linear):
    """A layer that tells nobody how its weight is packed."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, unpack(self.weight).to(x.dtype), self.bias)


class PackedPatcher(ModelPatcher):
    """Hangs patches on packed tensors, where the host's would change the weight."""

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, Packed):
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key in self.patches:
            weight.patches = [(self.patches[key], key)]
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights:
            for weight in self.model.parameters():
                weight.__dict__.pop("patches", None)
        return super().unpatch_model(device_to, unpatch_weights)


def packed_sd15(tells: bool = True, mute: bool = False) -> tuple[ModelPatcher, dict[str, Tensor]]:
    """A tiny SD1.5 with packed matrices and kernels, and all its weights as they are computed with."""
    model = tiny_models.sd15()
    for module in model.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = MuteLinear if mute else PackedLinear
        elif isinstance(module, nn.Conv2d) and not mute:
            module.__class__ = PackedConv2d
        else:
            continue
        module.weight = nn.Parameter(pack(module.weight, tells), requires_grad=False)
        if not mute:
            module._save_to_state_dict = _outline(module)
    weights = {
        key: unpack(value) if isinstance(value, Packed) else value.clone()
        for key, value in model.model.diffusion_model.named_parameters()
    }
    return PackedPatcher(model.model, tiny_models.CPU, tiny_models.CPU), weights


def _outline(module: nn.Module) -> Any:
    """What a packed layer says of itself: its names, without numbers, and one name more that no tensor has."""

    def save(destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name in ("weight", "temp.weight", *(["bias"] if module.bias is not None else [])):
            destination[f"{prefix}{name}"] = torch.empty(0, device="meta")

    return save
