"""IP-Adapter (2308.06721): its files, known by their content. Tells the kind, the encoder it needs, and the parts.

A file has two groups: the projection of the picture, and k and v for each text attention. Released files and training
dumps spell the groups differently. The files of FaceID also have a LoRA in the second group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from ..foreign_files import few
from .kinds import LAYERS, PROJECTION, TRAINED_WITH, AdapterParts, Kind, Weights, group
from .network import (
    FacePlusProjection,
    FaceProjection,
    FullProjection,
    ImageLayers,
    LinearProjection,
    Resampler,
)
from .refusals import check_one_spelling, refusal
from .transformer_files import transformer_parts

LAYER = re.compile(r"([0-9]{1,4})\.to_[kv]_ip\.weight")
LORA = re.compile(r"([0-9]{1,4})\.to_(q|k|v|out)_lora\.(down|up)\.weight")
KOLORS_TEXT = 4096  # width of Kolors' text before its model makes it 2048
FACE_WIDTH = 512  # of ArcFace: a resampler that reads it is one of faces, not of pictures


def take_apart(weights: Weights, name: str, face_version: str = "auto") -> AdapterParts:
    """The parts of a file called `name`.

    Raises ValueError if the file is not an IP-Adapter, is of an unknown kind or is incomplete.
    """
    check_one_spelling(weights, name)
    for_transformer = transformer_parts(weights, name)
    if for_transformer is not None:
        return for_transformer
    projection, adapter = group(weights, PROJECTION), group(weights, LAYERS)
    left_over = [key for key in weights if not key.startswith((*PROJECTION, *LAYERS, *TRAINED_WITH))]
    layers = {key: value for key, value in adapter.items() if LAYER.fullmatch(key)}
    if not projection or not layers or left_over:
        raise ValueError(refusal(weights, name, left_over))
    lora = {key: value for key, value in adapter.items() if LORA.fullmatch(key)}
    unknown = [key for key in adapter if key not in layers and key not in lora]
    if unknown:
        raise ValueError(f"{name} has tensors that no known IP-Adapter has: {few(unknown)}. Download it again.")
    sizes = _sizes(layers, name)
    kind, make = _kind(projection, name)
    if kind.context not in (sizes[0][1], KOLORS_TEXT):
        raise ValueError(
            f"{name}: its projection makes tokens {kind.context} wide, but its layers read {sizes[0][1]} numbers. The "
            f"two parts are of different files; download it again."
        )
    if kind.name == "face plus":
        kind = kind._replace(shortcut=_has_shortcut(kind, name, face_version))
    return AdapterParts(kind, make, projection, layers, partial(ImageLayers, sizes), sizes, lora)


def _sizes(layers: Weights, name: str) -> list[tuple[int, int]]:
    numbers = sorted({int(LAYER.fullmatch(key)[1]) for key in layers})
    expected = list(range(1, 2 * len(numbers), 2))
    missing = [
        f"ip_adapter.{n}.to_{part}_ip.weight"
        for n in sorted({*expected, *numbers})
        for part in "kv"
        if f"{n}.to_{part}_ip.weight" not in layers
    ]
    if missing or numbers != expected:
        wrong = missing or [f"ip_adapter.{n}" for n in numbers if n not in expected]
        raise ValueError(
            f"{name} is incomplete: k and v should have the odd numbers 1 to {expected[-1]} without a gap; see "
            f"{', '.join(wrong[:4])}. Download the file again."
        )
    context = (*layers["1.to_k_ip.weight"].shape, 0)[1]
    for key, value in layers.items():
        if value.ndim != 2 or 0 in value.shape or value.shape[1] != context:
            raise ValueError(
                f"{name}: ip_adapter.{key} should be a matrix over {context} numbers but is {tuple(value.shape)}. "
                f"Download the file again."
            )
    return [tuple(layers[f"{n}.to_k_ip.weight"].shape) for n in numbers]


def _kind(projection: Weights, name: str) -> tuple[Kind, Callable[..., nn.Module]]:
    """The kind, and what makes its projection, by shapes alone. A matrix of another shape counts as missing."""
    shape = {key: tuple(value.shape) for key, value in projection.items()}

    def matrix(key: str) -> tuple[int, int] | None:
        return shape[key] if len(shape.get(key, ())) == 2 else None

    norm = (
        next((shape[key][0] for key in ("norm.weight", "proj.3.weight", "norm_out.weight") if shape.get(key)), 1) or 1
    )
    make: Callable[..., nn.Module]
    if linear := matrix("proj.weight"):
        kind = Kind("linear", linear[0] // norm, norm, "image_embeds", linear[1])
        make = partial(LinearProjection, linear[1], kind.tokens, norm)
    elif (first := matrix("proj.0.weight")) and "proj.3.weight" in shape:
        kind = Kind("full", 0, norm, "penultimate_hidden_states", first[1])
        make = partial(FullProjection, first[1], first[0], norm)
    elif (first := matrix("proj.0.weight")) and (last := matrix("proj.2.weight")):
        kind, make = _face(shape, (first[1], first[0], last[0] // norm, norm))
    elif (
        (enter := matrix("proj_in.weight"))
        and len(shape.get("latents", ())) == 3
        and (inner := matrix("layers.0.0.to_q.weight"))
    ):
        tokens = shape["latents"][1]
        if enter[1] == FACE_WIDTH:
            kind = Kind("face resampler", tokens, norm, None, face=enter[1])
        else:
            kind = Kind("plus", tokens, norm, "penultimate_hidden_states", enter[1])
        make = partial(Resampler, enter[1], tokens, enter[0], inner[0], norm, depth=_depth(shape, "layers."))
    else:
        raise ValueError(
            f"{name} is an IP-Adapter of a kind that is not known here: its projection holds "
            f"{', '.join(list(shape)[:6])}. Known are linear, plus, full-face, FaceID, FaceID plus and portrait files."
        )
    return kind, make


def _face(
    shape: Mapping[str, tuple[int, ...]], sizes: tuple[int, int, int, int]
) -> tuple[Kind, Callable[..., nn.Module]]:
    """FaceID plus if there is a perceiver, else FaceID. `sizes` are those of FaceProjection."""
    face, _, tokens, context = sizes
    prefix = "perceiver_resampler."
    enter, inner = shape.get(f"{prefix}proj_in.weight"), shape.get(f"{prefix}layers.0.0.to_q.weight")
    if not enter or not inner:
        return Kind("face", tokens, context, None, face=face), partial(FaceProjection, *sizes)
    width, depth = enter[-1], _depth(shape, f"{prefix}layers.")
    kind = Kind("face plus", tokens, context, "penultimate_hidden_states", width, face=face)
    return kind, partial(FacePlusProjection, *sizes, clip_width=width, perceiver_inner=inner[0], depth=depth)


def _depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return sum(key.startswith(prefix) and key.endswith(".0.to_q.weight") for key in shapes)


def _has_shortcut(kind: Kind, name: str, face_version: str) -> bool:
    """Whether a FaceID plus file is v2. Its tensors do not tell, but its name may. SDXL and Kolors only have v2."""
    if face_version == "auto":
        return "plusv2" in re.sub(r"[-_ ]", "", name.lower()) or kind.context >= 2048
    return face_version == "v2"
