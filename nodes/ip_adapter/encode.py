"""Makes image tokens of pictures: the host's image encoder, then the adapter's projection.

The uncond of the paper is an encoding of zeros: zero embeddings, or a picture that is zero after normalisation (the
mean colour). ComfyUI_IPAdapter_plus encodes a black picture instead. Both are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import comfy.clip_vision
import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor
from torch.nn import functional

from ...models.ip_adapter.combine import Combine, combine, copy_logits, parse_weights
from ...models.ip_adapter.kinds import Form
from .prompt import ImageTokens, IPAdapter

Fit = Literal["crop", "squash", "pad"]
UncondPicture = Literal["paper", "black"]
Part = Literal["image_embeds", "penultimate_hidden_states"]
PLACES: Mapping[Part, int] = {"image_embeds": 2, "penultimate_hidden_states": 1}  # in what the host's encoder returns
AT_ONCE = 16  # pictures in one call of the encoder


class Encoding(NamedTuple):
    """What an image encoder makes of b pictures. A part that is not known is None."""

    image_embeds: Tensor | None  # (b, c)
    penultimate_hidden_states: Tensor | None  # (b, n, c)


class Pictures(NamedTuple):
    """Pictures (b, h, w, 3) in 0..1, how they are made square, and a mask (1 or b, h, w) of what counts."""

    image: Tensor
    fit: Fit = "crop"
    mask: Tensor | None = None


class TokenRequest(NamedTuple):
    """What the tokens are made of: an encoding or a face or both, and how several pictures become one."""

    positive: Encoding | None
    negative: Encoding | None = None
    faces: Tensor | None = None  # (b, c)
    clip_vision: ClipVisionModel | None = None
    weights: str = ""
    combine: Combine = "concat"
    uncond: UncondPicture = "paper"


# Which empty picture the negative reads, for files whose authors do otherwise. Without one it reads zeros.
EMPTY_PICTURES: Mapping[Form, Mapping[UncondPicture, UncondPicture]] = {
    "sd3": {"black": "black"},  # InstantX: zeros in place of hidden states
    "xlabs": {"paper": "black", "black": "black"},  # XLabs: a black picture
}
# The encoding of an empty picture never changes. It is kept as long as its encoder.
_EMPTY: WeakKeyDictionary[ClipVisionModel, dict[UncondPicture, Encoding]] = WeakKeyDictionary()


def encode_pictures(encoder: ClipVisionModel, pictures: Pictures, reads: Part | None = None) -> Encoding:
    """Returns the encoding of pictures, fitted and masked. What the mask hides is the mean colour.

    Of many pictures only the part that is read should be kept, for SigLIP's embeddings are as large as its states.
    Raises ValueError if there are neither one mask nor one for each picture.
    """
    pixels = _fitted(pictures.image, pictures.fit, encoder, normalise=True)
    if pictures.mask is not None:
        if len(pictures.mask) not in (1, len(pictures.image)):
            raise ValueError(
                f"mask should be one for all images or one for each, but there are {len(pictures.mask)} for "
                f"{len(pictures.image)} images. Connect as many masks as images."
            )
        mask = pictures.mask[..., None].expand(-1, -1, -1, 3)
        mask = functional.interpolate(mask.movedim(-1, 1), size=pictures.image.shape[1:3], mode="bilinear")
        pixels = pixels * _fitted(mask.movedim(1, -1), pictures.fit, encoder, normalise=False)
    return _encode(encoder, pixels, reads)


def _fitted(image: Tensor, fit: Fit, encoder: ClipVisionModel, normalise: bool) -> Tensor:
    """Returns pictures (b, 3, size, size), resized by the host, with the encoder's mean and deviation or without."""
    mean, std = (encoder.image_mean, encoder.image_std) if normalise else ([0.0] * 3, [1.0] * 3)
    if fit == "pad":
        image = _padded(image, mean)
    return comfy.clip_vision.clip_preprocess(image, encoder.image_size, mean, std, crop=fit != "squash")


def _padded(image: Tensor, colour: list[float]) -> Tensor:
    """Returns pictures (b, size, size, 3) in the middle of a square of the mean colour, which the encoder ignores."""
    b, h, w, _ = image.shape
    side = max(h, w)
    square = image.new_tensor(colour).expand(b, side, side, 3).clone()
    top, left = (side - h) // 2, (side - w) // 2
    square[:, top : top + h, left : left + w] = image
    return square


def _encode(encoder: ClipVisionModel, pixels: Tensor, reads: Part | None = None) -> Encoding:
    """Returns the encoding of pixel values (b, 3, size, size), as the host's encode_image makes it of pictures."""
    comfy.model_management.load_model_gpu(encoder.patcher)
    keep = comfy.model_management.intermediate_device()
    parts: dict[Part, list[Tensor]] = {part: [] for part in PLACES if reads in (None, part)}
    for some in pixels.split(AT_ONCE):
        with torch.no_grad():
            out = encoder.model(pixel_values=some.to(encoder.load_device).float(), intermediate_output=-2)
        for part, found in parts.items():
            found.append(out[PLACES[part]].to(keep).float())
    return Encoding(*(torch.cat(parts[part]) if part in parts else None for part in Encoding._fields))


def empty_picture(encoder: ClipVisionModel, uncond: UncondPicture) -> Encoding:
    """Returns the encoding of a picture without content, which is made once for each encoder."""
    encodings = _EMPTY.setdefault(encoder, {})
    if uncond not in encodings:
        size = encoder.image_size
        if uncond == "paper":
            encodings[uncond] = _encode(encoder, torch.zeros(1, 3, size, size))
        else:
            encodings[uncond] = encode_pictures(encoder, Pictures(torch.zeros(1, size, size, 3)))
    return encodings[uncond]


def make_tokens(adapter: IPAdapter, request: TokenRequest) -> ImageTokens:
    """Returns the tokens of a request. Raises ValueError if the file reads something else."""
    read = _read(adapter, request.positive)
    faces = _checked_faces(adapter, request.faces)
    if read is not None and faces is not None and len(read) != len(faces):
        raise ValueError(
            f"{adapter.name} needs one picture for each face, but got {len(read)} pictures and {len(faces)} faces. "
            f"Connect the cut-out faces of Face Embeds to both inputs."
        )
    count = len(read) if read is not None else len(faces)
    weights = parse_weights(request.weights, count)
    if request.combine == "concat":
        copy_logits(weights)  # raises ValueError for weights that are no shares
    elif count > 1 or request.combine == "add":
        read, faces = (
            None if part is None else combine(part, weights, request.combine) for part in (read, faces)
        )  # fmt: skip
        weights = weights.new_ones(1)
    project = _unchanged if adapter.kind.name == "timed" else _project
    unconds = {
        uncond: project(adapter, _negative(adapter, request, uncond, read), _no_face(faces))
        for uncond in ("paper", "black")
    }
    cond = project(adapter, read, faces)
    for other in unconds.values():
        if other.shape[1] != cond.shape[1]:
            raise ValueError(
                f"{adapter.name} makes a token of each part of a picture: the image has {cond.shape[1]} and its "
                f"negative {other.shape[1]}. Encode both with one image encoder."
            )
    return ImageTokens(
        cond=cond, uncond=unconds[request.uncond], black=unconds["black"],
        weights=weights, made_by=adapter.name, fingerprint=adapter.fingerprint,
    )  # fmt: skip


def _read(adapter: IPAdapter, encoding: Encoding | None) -> Tensor | None:
    """Returns the part of an encoding that the file reads. Raises ValueError if it is another encoder's."""
    kind = adapter.kind
    if kind.reads is None:
        return None
    part = None if encoding is None else getattr(encoding, kind.reads)
    if part is None:
        raise ValueError(
            f"{adapter.name} reads the {kind.reads} of an image encoder, but none was given. Connect an image and "
            f"{kind.encoder} as clip_vision, or its CLIP_VISION_OUTPUT."
        )
    if not len(part):
        raise ValueError(f"{adapter.name} needs at least one image, but the {kind.reads} hold none. Connect an image.")
    if part.shape[-1] != kind.width:
        raise ValueError(
            f"{adapter.name} reads {kind.reads} {kind.width} wide, but this image encoder's are {part.shape[-1]} "
            f"wide. Load {kind.encoder} as clip_vision."
        )
    if kind.patches and part.ndim == 3 and part.shape[1] != kind.patches:
        raise ValueError(
            f"{adapter.name} reads {kind.patches} hidden states of a picture, but this image encoder makes "
            f"{part.shape[1]}, so it is another one. Load {kind.encoder} as clip_vision."
        )
    if kind.name == "pooled" and part.ndim == 3:
        part = _pooled(adapter, part)
    if part.ndim != (2 if kind.reads == "image_embeds" else 3):
        raise ValueError(
            f"{adapter.name} reads {kind.reads} with {2 if kind.reads == 'image_embeds' else 3} axes, but this image "
            f"encoder's are {tuple(part.shape)}. Load {kind.encoder} as clip_vision."
        )
    return part.float()


def _pooled(adapter: IPAdapter, hidden: Tensor) -> Tensor:
    """Returns hidden states (b, n, c) as one vector (b, c) each, by SigLIP's pooling head.

    Raises ValueError if there is no head.
    """
    if adapter.pooling is None:
        raise ValueError(
            f"{adapter.name} reads one vector of a picture, which SigLIP's pooling head makes, but ComfyUI's image "
            f"encoder has no such head. Choose the encoder's file as pooling_head in Load IP-Adapter."
        )
    head = adapter.pooling
    comfy.model_management.load_models_gpu([head])
    with torch.no_grad():
        pooled = [head.model(some.to(head.load_device, torch.float32)) for some in hidden.split(AT_ONCE)]
    return torch.cat(pooled).to(hidden.device)


def _checked_faces(adapter: IPAdapter, faces: Tensor | None) -> Tensor | None:
    """Returns identities (b, c) of unit length, or (1, faces, c) if the file reads all faces of a person at once.

    Raises ValueError if the file needs other identities.
    """
    kind = adapter.kind
    if not kind.face:
        return None
    if faces is None:
        raise ValueError(
            f"{adapter.name} is a FaceID file and needs the identity of a face, but there is none. Connect Face Embeds "
            f"as face_embeds."
        )
    shape = tuple(faces.shape) if isinstance(faces, Tensor) else type(faces).__name__
    if not isinstance(faces, Tensor) or faces.ndim != 2 or not len(faces) or faces.shape[1] != kind.face:
        raise ValueError(
            f"{adapter.name} needs face_embeds of shape (faces, {kind.face}), but they are {shape}. Make them with "
            f"Face Embeds."
        )
    if kind.name == "face resampler":
        return faces.float()[None]
    return functional.normalize(faces.float(), dim=-1)


def _negative(
    adapter: IPAdapter, request: TokenRequest, uncond: UncondPicture, read: Tensor | None
) -> Tensor | None:  # fmt: skip
    if read is None:
        return None
    if request.negative is not None:
        return _read(adapter, request.negative).mean(0, keepdim=True)
    reads_patches = adapter.kind.reads == "penultimate_hidden_states"
    usual: Mapping[UncondPicture, UncondPicture] = {"paper": "paper", "black": "black"} if reads_patches else {}
    shown = EMPTY_PICTURES.get(adapter.kind.form, usual).get(uncond)
    if shown is not None and request.clip_vision is not None:
        return _read(adapter, empty_picture(request.clip_vision, shown))
    return torch.zeros_like(read[:1])


def _no_face(faces: Tensor | None) -> Tensor | None:
    return None if faces is None else torch.zeros_like(faces[:1])


def _unchanged(adapter: IPAdapter, read: Tensor, faces: None) -> Tensor:
    """Returns the hidden states (b, tokens, width) themselves: tokens are made of them at each noise level."""
    return read.detach().to(comfy.model_management.intermediate_device())


def _project(adapter: IPAdapter, read: Tensor | None, faces: Tensor | None) -> Tensor:
    """Returns tokens (b, tokens, context)."""
    comfy.model_management.load_models_gpu([adapter.projection])
    device = adapter.projection.load_device
    inputs = [part.to(device) for part in (faces, read) if part is not None]
    shortcut = {"shortcut": 1.0 if adapter.kind.shortcut else None} if adapter.kind.name == "face plus" else {}
    with torch.no_grad():
        tokens = adapter.projection.model(*inputs, **shortcut)
    return tokens.to(comfy.model_management.intermediate_device())
