"""New image embeddings from those of the host's image encoders, as the host's own CLIP_VISION_OUTPUT.

Hidden states turn token by token, as the embedding does. So tokens keep their lengths, which a plain blend would
shrink, and an IP-Adapter "plus" gets what IP-Adapter Encode makes of two pictures with combine slerp. A token without a
shortest way is blended plainly, because one of hundreds is no reason to stop.
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
from ..inputs.sockets import shape_text
from .text import projected_text

logger = logging.getLogger(__name__)
EMBEDS = "image_embeds"
READERS_OF_EMBEDS = ("SD21UNCLIP", "SDXL", "SDXLRefiner", "StableCascade_C")
READERS = (*READERS_OF_EMBEDS, "Lumina2")  # Z-Image Omni reads the hidden states, from 0.33 on
SAME_ENCODER = "Encode all of them with the same CLIP Vision Encode and the same model"


def checked_output(output: Any, name: str) -> Output:
    """Returns the output of an image encoder as it is. Raises ValueError if it is something else, empty, or has NaN."""
    embeds = getattr(output, EMBEDS, None)
    if not isinstance(embeds, Tensor) or embeds.ndim < 2 or 0 in embeds.shape or not embeds.is_floating_point():
        what = f"{type(output).__name__} with {EMBEDS} {shape_text(embeds)}" if hasattr(output, EMBEDS) else None
        raise ValueError(
            f"{name} should be a CLIP_VISION_OUTPUT with {EMBEDS} of shape (images, width), but is "
            f"{what or type(output).__name__}. Connect CLIP Vision Encode with a CLIP image encoder."
        )
    for part, value in _tensors(output).items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name} should hold finite numbers, but its {part} has NaN or infinity. Look at the picture that was "
                f"encoded: a failed VAE decode is a common cause."
            )
    return output


def slerp_outputs(a: Output, b: Output, t: float) -> Output:
    """Returns the pictures t of the way from a to b. A single picture goes with each picture of the other output.

    Raises ValueError if a and b come from two encoders or differ in number.
    """
    _check_same_encoder({"a": a, "b": b})
    count_a, count_b = len(a.image_embeds), len(b.image_embeds)
    if count_a != count_b and 1 not in (count_a, count_b):
        raise ValueError(
            f"a and b should hold the same number of pictures, or one of them a single one, but a holds {count_a} and "
            f"b holds {count_b}. Encode the same number for both."
        )

    def between(values: Sequence[Tensor], turn: Callable[..., Tensor]) -> Tensor:
        return turn(*values, t)

    return _combine([a, b], between, slerp_embeds, slerp, sizes_of=a if count_a >= count_b else b)


def mean_of_outputs(outputs: Mapping[str, Output], weights: str) -> Output:
    """Returns one picture, the mean of all pictures, each with the weight of its output.

    Raises ValueError if the outputs come from several encoders or the weights are wrong.
    """
    shares = parse_mean_weights(weights, len(outputs))
    _check_same_encoder(outputs)
    averaged = list(outputs.values())
    of_each = [share for share, output in zip(shares, averaged, strict=True) for _ in output.image_embeds]

    def mean(values: Sequence[Tensor], average: Callable[..., Tensor]) -> Tensor:
        return average(torch.cat(list(values)), of_each)

    return _combine(averaged, mean, mean_embeds, mean_directions, sizes_of=averaged[0], count=1)


def move_output_by_text(output: Output, clip: CLIP, source: str, target: str, theta: float) -> Output:
    """Returns the pictures turned by theta from what `source` says to what `target` says. Hidden states stay.

    Raises ValueError if pictures and texts share no space.
    """
    embeds = output.image_embeds
    if embeds.ndim != 2:
        raise ValueError(
            f"clip_vision_output should have {EMBEDS} of shape (images, width), but they are {shape_text(embeds)}, "
            f"like those of SigLIP, which share no space with a CLIP text encoder. Encode with a CLIP image encoder."
        )
    moved = _copy(output)
    if theta:
        texts = [projected_text(clip, text, embeds.shape[-1]) for text in (source, target)]
        turned = move_by_text(_precise(embeds), text_diff(*(_precise(text) for text in texts)), theta)
        moved[EMBEDS] = turned.to(embeds.dtype)
    return moved


def warn_if_ignored(model: ModelPatcher | None, output: Output, readers: Sequence[str] = READERS) -> None:
    """Warns in the log if a checkpoint ignores an output in unCLIP Conditioning, which the host does silently."""
    network = getattr(model, "model", None)
    if network is None:
        return
    kinds = tuple(kind for kind in (getattr(comfy.model_base, name, None) for name in readers) if kind)
    name, width = type(network).__name__, output.image_embeds.shape[-1]
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


def _combine(
    outputs: Sequence[Output], how: Callable[[Sequence[Tensor], Callable[..., Tensor]], Tensor],
    of_embeds: Callable[..., Tensor], of_tokens: Callable[..., Tensor], sizes_of: Output, count: int | None = None,
) -> Output:  # fmt: skip
    """Returns the parts that all outputs have, combined in single precision at least."""
    tensors = [_tensors(output) for output in outputs]
    combined = Output()
    for part, first in vars(sizes_of).items():
        if all(part in parts for parts in tensors):
            values = [parts[part] for parts in tensors]
            dtype = reduce(torch.promote_types, (value.dtype for value in values))
            strict = part == EMBEDS and first.ndim == 2
            device = outputs[0].image_embeds.device
            values = [_precise(value.to(device)) for value in values]
            combined[part] = how(values, of_embeds if strict else of_tokens).to(dtype)
        elif not any(part in parts for parts in tensors):
            combined[part] = first[:count] if isinstance(first, list) else first
    return combined


def _check_same_encoder(outputs: Mapping[str, Output]) -> None:
    """Raises ValueError if parts of the outputs differ in shape, apart from the number of pictures."""
    (first_name, first), *others = outputs.items()
    for name, other in others:
        for part, value in _tensors(first).items():
            other_value = _tensors(other).get(part)
            if other_value is not None and other_value.shape[1:] != value.shape[1:]:
                raise ValueError(
                    f"{first_name} and {name} should come from one image encoder, but their {part} have the shapes "
                    f"{shape_text(value)} and {shape_text(other_value)}. {SAME_ENCODER}."
                )
        size, other_size = _seen_size(first), _seen_size(other)
        if None not in (size, other_size) and size != other_size:
            raise ValueError(
                f"{first_name} and {name} should show pictures of one size to the image encoder, but it saw {size} "
                f"and {other_size}. {SAME_ENCODER}, and crop to one format."
            )


def _seen_size(output: Output) -> tuple[int, ...] | None:
    """Returns the size of the first picture in the encoder, or None if the host does not note it (before 0.33)."""
    sizes = getattr(output, "image_sizes", None)
    return tuple(sizes[0]) if isinstance(sizes, list) and sizes else None


def _copy(output: Output) -> Output:
    copied = Output()
    for part, value in vars(output).items():
        copied[part] = value
    return copied


def _tensors(output: Output) -> dict[str, Tensor]:
    return {
        part: value for part, value in vars(output).items() if isinstance(value, Tensor) and value.is_floating_point()
    }


def _precise(values: Tensor) -> Tensor:
    """Returns values in single precision at least."""
    return values if values.dtype == torch.float64 else values.float()
