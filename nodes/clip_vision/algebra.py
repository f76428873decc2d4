"""New image embeddings from those that the host's image encoders gave, as the host's own CLIP_VISION_OUTPUT.

Hidden states turn token by token, as the embedding does: each token keeps the length that a picture's own have, where
a plain blend would shrink it, and an IP-Adapter "plus" gets what IP-Adapter Encode makes of two pictures with combine
slerp. A token that has no shortest way is blended plainly; one of hundreds is no reason to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import comfy.model_base
import torch
from comfy.clip_vision import Output
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...models.clip_vision.algebra import (
    mean_directions,
    mean_embeds,
    move_by_text,
    parse_mean_weights,
    slerp,
    slerp_embeds,
    text_diff,
)
from .text import projected_text

logger = logging.getLogger(__name__)
EMBEDS = "image_embeds"
READERS_OF_EMBEDS = ("SD21UNCLIP", "SDXL", "SDXLRefiner", "StableCascade_C")
READERS = (*READERS_OF_EMBEDS, "Lumina2")  # Z-Image Omni reads the hidden states, from 0.33 on
SAME_ENCODER = "Encode all of them with the same CLIP Vision Encode and the same model"


def checked_output(found: Any, name: str) -> Output:
    """What came in as it is; ValueError where it is no output of an image encoder, empty, or holds NaN."""
    embeds = getattr(found, EMBEDS, None)
    if not isinstance(embeds, Tensor) or embeds.ndim < 2 or 0 in embeds.shape or not embeds.is_floating_point():
        what = f"{type(found).__name__} with {EMBEDS} {_shape(embeds)}" if hasattr(found, EMBEDS) else None
        raise ValueError(
            f"{name} should be a CLIP_VISION_OUTPUT with {EMBEDS} of shape (images, width), but is "
            f"{what or type(found).__name__}. Connect CLIP Vision Encode with a CLIP image encoder."
        )
    for part, value in _tensors(found).items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name} should hold finite numbers, but its {part} has NaN or infinity. Look at the picture that was "
                f"encoded: a failed VAE decode is a common cause."
            )
    return found


def slerp_outputs(a: Output, b: Output, t: float) -> Output:
    """t of the way from a to b, picture by picture, one picture standing for as many as the other has."""
    _check_same_encoder({"a": a, "b": b})
    count_a, count_b = len(a.image_embeds), len(b.image_embeds)
    if count_a != count_b and 1 not in (count_a, count_b):
        raise ValueError(
            f"a and b should hold as many pictures, or one of them a single one, but a holds {count_a} and b holds "
            f"{count_b}. Encode as many for both."
        )

    def between(values: Sequence[Tensor], turn: Callable[..., Tensor]) -> Tensor:
        return turn(*values, t)

    return _combined([a, b], between, slerp_embeds, slerp, sizes_of=a if count_a >= count_b else b)


def mean_of_outputs(outputs: Mapping[str, Output], weights: str) -> Output:
    """One picture that is the weighted mean; each picture of a batch counts as one, with the weight of its output."""
    shares = parse_mean_weights(weights, len(outputs))
    _check_same_encoder(outputs)
    found = list(outputs.values())
    of_each = [share for share, one in zip(shares, found, strict=True) for _ in one.image_embeds]

    def mean(values: Sequence[Tensor], average: Callable[..., Tensor]) -> Tensor:
        return average(torch.cat(list(values)), of_each)

    return _combined(found, mean, mean_embeds, mean_directions, sizes_of=found[0], count=1)


def move_output_by_text(found: Output, clip: CLIP, source: str, target: str, theta: float) -> Output:
    """The pictures turned theta of the way from what `source` says to what `target` says; hidden states stay."""
    embeds = found.image_embeds
    if embeds.ndim != 2:
        raise ValueError(
            f"clip_vision_output should have {EMBEDS} of shape (images, width), but they are {_shape(embeds)}, as "
            f"SigLIP's are, which share no space with a CLIP text encoder. Encode with a CLIP image encoder."
        )
    made = _copy(found)
    if theta:
        texts = [projected_text(clip, text, embeds.shape[-1]) for text in (source, target)]
        moved = move_by_text(_single(embeds), text_diff(*(_single(text) for text in texts)), theta)
        made[EMBEDS] = moved.to(embeds.dtype)
    return made


def warn_where_ignored(model: ModelPatcher | None, found: Output, readers: Sequence[str] = READERS) -> None:
    """Says in the log what a checkpoint does not read of unCLIP conditioning, which the host ignores in silence."""
    network = getattr(model, "model", None)
    if network is None:
        return
    kinds = tuple(kind for kind in (getattr(comfy.model_base, name, None) for name in readers) if kind)
    name, width = type(network).__name__, found.image_embeds.shape[-1]
    wanted = getattr(getattr(getattr(network, "noise_augmentor", None), "time_embed", None), "dim", width)
    if not isinstance(network, kinds):
        logger.warning(
            "This checkpoint (%s) does not read the image embeddings of unCLIP Conditioning, which is ignored there: "
            "use an unCLIP checkpoint, SDXL or Stable Cascade, or clip_vision_output of IP-Adapter Encode.", name,
        )  # fmt: skip
    elif wanted != width:
        logger.warning(
            "This checkpoint (%s) reads image embeddings %d wide in unCLIP Conditioning, but these are %d wide: encode "
            "with the image encoder that it was trained with.", name, wanted, width,
        )  # fmt: skip


def _combined(
    outputs: Sequence[Output], how: Callable[[Sequence[Tensor], Callable[..., Tensor]], Tensor],
    of_embeds: Callable[..., Tensor], of_tokens: Callable[..., Tensor], sizes_of: Output, count: int | None = None,
) -> Output:  # fmt: skip
    """What all outputs have, combined in single precision at least; what only some have is left out."""
    tensors = [_tensors(one) for one in outputs]
    made = Output()
    for part, first in vars(sizes_of).items():
        if all(part in one for one in tensors):
            values = [one[part] for one in tensors]
            dtype = reduce(torch.promote_types, (value.dtype for value in values))
            strict = part == EMBEDS and first.ndim == 2
            device = outputs[0].image_embeds.device
            values = [_single(value.to(device)) for value in values]
            made[part] = how(values, of_embeds if strict else of_tokens).to(dtype)
        elif not any(part in one for one in tensors):
            made[part] = first[:count] if isinstance(first, list) else first
    return made


def _check_same_encoder(outputs: Mapping[str, Output]) -> None:
    """ValueError where parts of the outputs differ in shape, the number of pictures aside."""
    (first_name, first), *others = outputs.items()
    for name, other in others:
        for part, value in _tensors(first).items():
            found = _tensors(other).get(part)
            if found is not None and found.shape[1:] != value.shape[1:]:
                raise ValueError(
                    f"{first_name} and {name} should come from one image encoder, but their {part} have the shapes "
                    f"{_shape(value)} and {_shape(found)}. {SAME_ENCODER}."
                )
        size, other_size = _seen_size(first), _seen_size(other)
        if None not in (size, other_size) and size != other_size:
            raise ValueError(
                f"{first_name} and {name} should show pictures of one size to the image encoder, but it saw {size} "
                f"and {other_size}. {SAME_ENCODER}, and crop to one format."
            )


def _seen_size(found: Output) -> tuple[int, ...] | None:
    """Of the first picture, where the host notes it (from 0.33 on)."""
    sizes = getattr(found, "image_sizes", None)
    return tuple(sizes[0]) if isinstance(sizes, list) and sizes else None


def _copy(found: Output) -> Output:
    made = Output()
    for part, value in vars(found).items():
        made[part] = value
    return made


def _tensors(found: Output) -> dict[str, Tensor]:
    return {
        part: value for part, value in vars(found).items() if isinstance(value, Tensor) and value.is_floating_point()
    }


def _single(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
