"""Trained weights of a UNet from a file as increments, so that they add up with LoRA, in any order, at any strength.

A file holds increments or the values themselves, and nothing in it tells which. Values resemble the model's own
weights, increments do not: the cosine between the two decides.
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

logger = logging.getLogger(__name__)
PREFIX = "diffusion_model."
SAME = 0.5  # cosine above which a file is taken for values; of increments it is near 0
FINGERPRINT = 256  # numbers of a tensor, from all over it, that tell it from others
KEPT_TYPES = (torch.float16, torch.bfloat16, torch.float32)  # a difference of narrower numbers needs more room
Mode = Literal["auto", "increment", "full"]


@dataclass(frozen=True, eq=False)
class UNetWeights:
    """The tensors of a file, by diffusers' or the host's names."""

    name: str
    tensors: Mapping[str, Tensor]
    mode: Mode

    @property
    def fingerprint(self) -> str:
        """Of the names and of some numbers of each tensor: the same whenever the file is loaded."""
        digest = sha256()
        for key, value in sorted(self.tensors.items()):
            some = value.flatten()[:: max(1, value.numel() // FINGERPRINT)]
            digest.update(f"{key} {tuple(value.shape)}".encode() + some.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def add_unet_weights(
    model: ModelPatcher, weights: UNetWeights, strength: float, reference: ModelPatcher | None = None
) -> ModelPatcher:
    """A clone of `model` with the file's weights; values become their difference from `reference`, or from the model.

    Several nodes with one file, as for two hints in a picture, have its weights once: at the strength of the first.
    ValueError for a file that is made for another model.
    """
    mark = f"reins_unet_{weights.fingerprint}"
    settings = (strength, weights.mode, reference is not None)
    if (first := model.get_attachment(mark)) is not None:
        if first != settings:
            logger.warning(
                "%s is in the model already, by an earlier node at unet_strength %g; it stays so",
                weights.name,
                first[0],
            )
        return model
    found = increments_of(weights, model, reference)
    model = model.clone()
    model.add_patches({key: ("diff", (value,)) for key, value in found.items()}, strength)
    model.set_attachments(mark, settings)
    return model


def increments_of(
    weights: UNetWeights, model: ModelPatcher, reference: ModelPatcher | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """What a file adds to a model, by the host's names."""
    own = Unpatched(model)
    found = _matched(model, weights, own)
    base = own if reference is None else _checked_reference(Unpatched(reference), found, own)
    if _decided(weights, found, base) == "increment":
        if reference is not None:
            logger.warning("%s holds increments, which need no reference_model: it is not used", weights.name)
        return found
    differences = {
        key: (value.float() - base[key]).to(value.dtype if value.dtype in KEPT_TYPES else torch.float32)
        for key, value in found.items()
    }
    return {key: value for key, value in differences.items() if value.any()}


class Unpatched:
    """The UNet's weights as they are without any patches, made single precision on the CPU when asked for."""

    def __init__(self, model: ModelPatcher) -> None:
        self._found = {key: entry[0] for key, entry in model.get_key_patches(PREFIX).items()}

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Tensor:
        weight, convert = self._found[key]
        return convert(weight, inplace=False).to("cpu", torch.float32)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._found[key][0].shape)


def _matched(model: ModelPatcher, weights: UNetWeights, own: Unpatched) -> dict[str, Tensor]:
    """By the host's names; what has none is reported."""
    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    named = {key: host_name(key, table) for key in weights.tensors}
    found, unknown, misshapen = {}, [], []
    for key, value in weights.tensors.items():
        name = f"{PREFIX}{named[key]}"
        if named[key] is None or name not in own:
            unknown.append(key)
        elif _squeezed(value.shape) != _squeezed(own.shape(name)):
            misshapen.append(f"{key} is {tuple(value.shape)}, in the model {own.shape(name)}")
        else:
            found[name] = value.reshape(own.shape(name))
    if misshapen or not found:
        raise ValueError(
            f"{weights.name} does not fit the UNet of {type(model.model).__name__}: "
            f"{few(misshapen) if misshapen else 'there is no ' + few(unknown)}. Choose a file made for this model."
        )
    if unknown:
        logger.warning(
            "%s: %d of %d tensors have no place in the model and were left out: %s",
            weights.name, len(unknown), len(weights.tensors), few(unknown),
        )  # fmt: skip
    return found


def _checked_reference(reference: Unpatched, found: Mapping[str, Tensor], own: Unpatched) -> Unpatched:
    for key in found:
        shape = reference.shape(key) if key in reference else "absent"
        if shape != own.shape(key):
            raise ValueError(
                f"reference_model should be of the same kind as model, but {key} is {shape} there and "
                f"{own.shape(key)} in the model. Connect the model that the file was trained on."
            )
    return reference


def _decided(weights: UNetWeights, found: Mapping[str, Tensor], own: Unpatched) -> Mode:
    if weights.mode != "auto":
        return weights.mode
    cosine = _cosine(found, own)
    mode: Mode = "full" if cosine > SAME else "increment"
    logger.info(
        "%s: %d tensors taken as %s (cosine to the model's own weights: %.2f)",
        weights.name, len(found), "values" if mode == "full" else "increments", cosine,
    )  # fmt: skip
    return mode


def _cosine(found: Mapping[str, Tensor], own: Unpatched) -> float:
    dot = file_square = own_square = 0.0
    for key, value in found.items():
        value, weight = value.float().flatten(), own[key].flatten()
        dot += float(value @ weight)
        file_square += float(value @ value)
        own_square += float(weight @ weight)
    return dot / max((file_square * own_square) ** 0.5, 1e-30)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A projection may be a matrix or a kernel of size 1."""
    return tuple(length for length in shape if length != 1)
