"""Makes a UniCon of files, and finds its blocks in a model."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path, PurePath

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...engine.loading import check_finite, load_network, read_file, read_metadata
from ...engine.unet import Transformer, block_names, family_of, unet_of
from ...models.foreign_files import few
from ...models.unicon.files import SETS, UniConParts, flat_names, parse_unicon
from ...models.unicon.network import UniCon as Network
from ...models.unicon.network import places_of
from ...models.unicon.stacks import PROJECTIONS, stacked
from .side_by_side import BlockNumbers, UniCon

MODEL_FILE, LORA_FILE = "model.pth", "pytorch_lora_weights.safetensors"
REASON = "UniCon files were trained for the attentions of SD1.x, whose network is a UNet."
NAME_KEY, TRIGGER_KEY, POST_KEY = "unicon.name", "unicon.trigger", "unicon.post"  # of the metadata of a single file
TRIGGERS = {
    "depth": "depth_map, ",
    "edge": "edge_map, ",
    "edges": "edge_map, ",
    "hed": "edge_map, ",
    "pose": "pose_map, ",
}


def read_unicon(path: Path, name: str, trigger: str | None = None) -> UniCon:
    """Returns the UniCon of a folder of a release, of its model.pth alone, or of one file.

    If `trigger` is None, it is that of the file's metadata, or the one that the authors use for files of this name.
    Raises ValueError if the file is no UniCon.
    """
    sets = {}
    metadata: dict[str, str] = {}
    if path.is_dir():
        weights = read_file(path / MODEL_FILE)
        files = {of_set: path / of_set / LORA_FILE for of_set in SETS}
        sets = {of_set: read_file(file) for of_set, file in files.items() if file.is_file()}
    else:
        weights = read_file(path)
        metadata = read_metadata(path)
    parts = parse_unicon(weights, name, sets)
    if trigger is None:
        trigger = metadata.get(TRIGGER_KEY, _usual_trigger(name))
    return make_unicon(parts, metadata.get(NAME_KEY, name), trigger)


def make_unicon(parts: UniConParts, name: str, trigger: str = "") -> UniCon:
    """Returns a UniCon whose weights belong to the host."""
    check_finite(parts.weights, name)  # here, so that the error has a name for each matrix
    weights = stacked(parts.weights, places_of(parts.sizes))
    network = load_network(partial(Network, parts.sizes), weights, name)
    return UniCon(name, trigger, network, parts)


def _usual_trigger(name: str) -> str:
    path = PurePath(name)
    own = path.parent.name if path.name == MODEL_FILE else path.stem
    words = re.split(r"[^a-z]+", own.lower())
    return next((trigger for word, trigger in TRIGGERS.items() if word in words), "")


def match_unicon(unicon: UniCon, model: ModelPatcher) -> BlockNumbers:
    """Returns where the blocks of a file are in a model. Raises ValueError if the file is for another kind of model."""
    unet = unet_of(model, REASON)
    family, name = family_of(unet, model), type(model.model).__name__
    if family != "SD1.x":
        raise ValueError(
            f"{unicon.name} is a UniCon and needs SD1.x, but the model is {family} ({name}). Connect an SD1.x model."
        )
    blocks = block_names(unet)
    parts = unicon.parts
    missing = [block for block in dict.fromkeys((*parts.joints, *parts.conditions)) if block not in blocks]
    if missing:
        raise ValueError(
            f"{unicon.name} has blocks that the model ({name}) lacks: {few(missing)}. Connect the kind of model that "
            f"it was trained on."
        )
    wrong = [*_joint_faults(parts, blocks), *_condition_faults(parts, blocks)]
    if wrong:
        raise ValueError(f"{unicon.name} does not fit {name}: {few(wrong)}. Connect the kind of model it is for.")
    return BlockNumbers.of(parts, blocks)


def _joint_faults(parts: UniConParts, blocks: dict[str, Transformer]) -> list[str]:
    widths = [(name, blocks[name].width, sizes) for name, sizes in zip(parts.joints, parts.sizes.joints, strict=True)]
    return [
        f"{name} is {width} wide in the model and {lora.inputs} to {lora.outputs} in the file"
        for name, width, sizes in widths
        for lora in (*sizes.xy, *sizes.yx)
        if (lora.inputs, lora.outputs) != (width, width)
    ]


def _condition_faults(parts: UniConParts, blocks: dict[str, Transformer]) -> list[str]:
    faults = []
    for name, (own, text) in zip(parts.conditions, parts.sizes.conditions, strict=True):
        width, context = blocks[name].width, blocks[name].context
        wanted = [width] * len(PROJECTIONS) + [context if p in ("to_k", "to_v") else width for p in PROJECTIONS]
        for lora, inputs in zip((*own, *text), wanted, strict=True):
            if (lora.inputs, lora.outputs) != (inputs, width):
                faults.append(
                    f"{name} takes {inputs} to {width} in the model and {lora.inputs} to {lora.outputs} in the file"
                )
    return faults


def save_unicon(unicon: UniCon, path: Path) -> None:
    """Writes one safetensors file with everything, under the names of the official model.pth."""
    names = flat_names(unicon.parts)
    weights = {names[key]: value.contiguous() for key, value in unicon.parts.weights.items()}
    posts = {sizes.post for sizes in unicon.parts.sizes.joints}
    metadata = {NAME_KEY: unicon.name, TRIGGER_KEY: unicon.trigger, POST_KEY: ", ".join(sorted(posts))}
    comfy.utils.save_torch_file(weights, str(path), metadata)
