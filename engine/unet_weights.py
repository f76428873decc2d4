"""Trained weights of a UNet from a file, added to a model as increments.

Increments add up with LoRA in any order and at any strength. A file holds increments or full values, and nothing in it
tells which. Values resemble the model's own weights, increments do not. So the cosine between the file and the model
decides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..models.unet_names import host_name
from .loading import few
from .unpatched import Unpatched, some_numbers

logger = logging.getLogger(__name__)
PREFIX = "diffusion_model."
VALUES_COSINE = 0.5  # a file of a greater cosine holds values, for that of increments is near 0
FINGERPRINT = 256  # how many numbers, from all over a tensor, tell it from others
KEPT_TYPES = (torch.float16, torch.bfloat16, torch.float32)  # a difference of narrower numbers needs more bits
Mode = Literal["auto", "increment", "full"]


@dataclass(frozen=True, eq=False)
class UNetWeights:
    """The tensors of a file, by the names of diffusers or of the host."""

    name: str
    tensors: Mapping[str, Tensor]
    mode: Mode

    @property
    def fingerprint(self) -> str:
        """Hash of the names and of some numbers of each tensor. It is the same whenever the file is loaded."""
        digest = sha256()
        for key, value in sorted(self.tensors.items()):
            numbers = value.flatten()[:: max(1, value.numel() // FINGERPRINT)]
            digest.update(f"{key} {tuple(value.shape)}".encode() + numbers.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def add_unet_weights(
    model: ModelPatcher, weights: UNetWeights, strength: float, reference: ModelPatcher | None = None
) -> ModelPatcher:
    """Returns a clone of `model` with the file's weights.

    Without a `reference` values replace a share of the model's weights. With one their difference from it is added. If
    several nodes have the same file, as for two hints in a picture, its weights are added once, at the strength of the
    first node.
    Raises ValueError if the file is made for another model.
    """
    attachment = f"reins_unet_{weights.fingerprint}"
    settings = (strength, weights.mode, reference is not None)
    if (first := model.get_attachment(attachment)) is not None:
        if first != settings:
            logger.warning(
                "%s is in the model already, by an earlier node at unet_strength %g; it stays so",
                weights.name,
                first[0],
            )
        return model
    own = Unpatched(model, PREFIX)
    tensors = _matched(model, weights, own)
    base = own if reference is None else _checked_reference(Unpatched(reference, PREFIX), tensors, own)
    mode = _mode_of(weights, tensors, base)
    model = model.clone()
    model.set_attachments(attachment, settings)
    if mode == "increment":
        if reference is not None:
            logger.warning("%s holds increments, which need no reference_model: it is not used", weights.name)
        _add_increments(model, tensors, strength)
        return model
    # A patch that scales the weights below it, as a merge of two models does, must not scale the file's. And how packs
    # patch weights that they keep packed is theirs.
    is_plain = {key: reference is None and not _is_scaled(model, key) and not own.is_packed(key) for key in tensors}
    _add_values(model, {key: value for key, value in tensors.items() if is_plain[key]}, strength)
    rest = {key: value for key, value in tensors.items() if not is_plain[key]}
    _add_increments(model, differences(rest, base), strength)
    return model


class Values(tuple):
    """A patch of the host with full values. It is one of the patches that come before all others."""

    __slots__ = ()


def _add_increments(model: ModelPatcher, increments: Mapping[str, Tensor], strength: float) -> None:
    model.add_patches({key: ("diff", (value,)) for key, value in increments.items()}, strength)


def _add_values(model: ModelPatcher, values: Mapping[str, Tensor], strength: float) -> None:
    """Moves a clone's own weights towards the values: w + strength * (values - w), with no copy of either.

    The first patch leaves (1 - the sum of all strengths) of the weight, and each adds its share of a file.
    """
    model.add_patches({key: Values(("diff", (value,))) for key, value in values.items()}, strength)
    for key in values:
        *others, (share, value, left, *rest) = model.patches[key]
        left -= strength
        if others and isinstance(others[0][1], Values):
            first_share, first, others_left, *first_rest = others[0]
            left += others_left - 1
            others[0] = (first_share, first, 1.0, *first_rest)
        model.patches[key] = [(share, value, left, *rest), *others]


def _is_scaled(model: ModelPatcher, key: str) -> bool:
    patches = model.patches.get(key, ())
    return any(patch[2] != 1 and not isinstance(patch[1], Values) for patch in patches)


def differences(tensors: Mapping[str, Tensor], base: Unpatched) -> dict[str, Tensor]:
    """Returns the tensors minus those of a model, (any, ...) each, by the host's names. Those of 0 are left out.

    Raises ValueError if the model's cannot be read.
    """
    found = {
        key: (value.float() - base[key]).to(value.dtype if value.dtype in KEPT_TYPES else torch.float32)
        for key, value in tensors.items()
    }
    return {key: value for key, value in found.items() if value.any()}


def _matched(model: ModelPatcher, weights: UNetWeights, own: Unpatched) -> dict[str, Tensor]:
    """Returns the tensors by the host's names. A warning tells of those that have none."""
    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    named = {key: host_name(key, table) for key in weights.tensors}
    matched, unknown, misshapen = {}, [], []
    for key, value in weights.tensors.items():
        name = f"{PREFIX}{named[key]}"
        if named[key] is None or name not in own:
            unknown.append(key)
        elif _squeezed(value.shape) != _squeezed(own.shape(name)):
            misshapen.append(f"{key} is {tuple(value.shape)}, in the model {own.shape(name)}")
        else:
            matched[name] = value.reshape(own.shape(name))
    if misshapen or not matched:
        raise ValueError(
            f"{weights.name} does not fit the UNet of {type(model.model).__name__}: "
            f"{few(misshapen) if misshapen else 'there is no ' + few(unknown)}. Choose a file made for this model."
        )
    if unknown:
        logger.warning(
            "%s: %d of %d tensors have no place in the model and were left out: %s",
            weights.name, len(unknown), len(weights.tensors), few(unknown),
        )  # fmt: skip
    return matched


def _checked_reference(reference: Unpatched, tensors: Mapping[str, Tensor], own: Unpatched) -> Unpatched:
    for key in tensors:
        shape = reference.shape(key) if key in reference else "absent"
        if shape != own.shape(key):
            raise ValueError(
                f"reference_model should be of the same kind as model, but {key} is {shape} there and "
                f"{own.shape(key)} in the model. Connect the model that the file was trained on."
            )
    return reference


def _mode_of(weights: UNetWeights, tensors: Mapping[str, Tensor], own: Unpatched) -> Mode:
    if weights.mode != "auto":
        return weights.mode
    cosine = _cosine(tensors, own)
    mode: Mode = "full" if cosine > VALUES_COSINE else "increment"
    logger.info(
        "%s: %d tensors taken as %s (cosine to the model's own weights: %.2f)",
        weights.name, len(tensors), "values" if mode == "full" else "increments", cosine,
    )  # fmt: skip
    return mode


def _cosine(tensors: Mapping[str, Tensor], own: Unpatched) -> float:
    dot = file_square = own_square = 0.0
    for key, value in tensors.items():
        value, weight = some_numbers(value).float(), own.some(key)
        dot += float(value @ weight)
        file_square += float(value @ value)
        own_square += float(weight @ weight)
    return dot / max((file_square * own_square) ** 0.5, 1e-30)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without axes of length 1, for a projection may be a matrix or a kernel of size 1."""
    return tuple(length for length in shape if length != 1)
