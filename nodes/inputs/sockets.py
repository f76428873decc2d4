"""The socket types of this pack, and checks of what comes in through the host's socket types."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

SHOWN = 1 / 255  # what a mask has to exceed somewhere
CHANNELS = (3, 4)  # of a picture: red, green, blue, and maybe alpha
logger = logging.getLogger(__name__)
ControlNeXtSocket = io.Custom("CONTROLNEXT")
IPAdapterSocket = io.Custom("IPADAPTER")
ImageTokensSocket = io.Custom("IMAGE_TOKENS")
UniConSocket = io.Custom("UNICON")
HDirectionSocket = io.Custom("H_DIRECTION")
FaceEmbedsSocket = io.Custom("FACE_EMBEDS")
PeerEmbedsSocket = io.Custom("EMBEDS")  # of ComfyUI_IPAdapter_plus


def checked_image(image: Tensor, name: str) -> Tensor:
    """Returns pictures (b, h, w, 3) from 0 to 1 in single precision, without the alpha that they may have.

    Raises ValueError if they have another shape, no picture, or numbers that are none of a picture.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in CHANNELS or 0 in image.shape:
        raise ValueError(
            f"{name} should be pictures of shape (images, height, width, 3), but is {shape_text(image)}. Connect an "
            f"IMAGE."
        )
    return picture_numbers(image[..., :3], name)


def picture_numbers(image: Tensor, name: str) -> Tensor:
    """Returns pictures (b, ...) in single precision, cut to the range from 0 to 1.

    The host's resizing by curves and its EXR files leave this range in places, and some of its settings hand pictures
    around in half precision. Raises ValueError if the numbers are of another range or not finite.
    """
    return in_range(image, name).clamp(0, 1)


def in_range(values: Tensor, name: str) -> Tensor:
    """Returns pictures or masks (b, ...) in single precision.

    Raises ValueError if they are bytes, go to 255 or so, or have NaN.
    """
    if not values.is_floating_point():
        found = f"they are whole numbers ({values.dtype})"
    elif finite_tensor(values, name).float().mean() > 1:
        found = f"their mean is {values.float().mean():.4g}"
    else:
        return values.float()
    raise ValueError(
        f"{name} should hold numbers from 0 to 1, but {found}. Divide them by the largest that they can be, such as "
        f"255."
    )


def checked_mask(mask: Tensor | None, name: str) -> Tensor | None:
    """Returns masks (m, h, w) of a mask with or without a batch. Raises ValueError if it has another shape or range."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"{name} should have shape (masks, height, width), but is {shape_text(mask)}. Connect a MASK.")
    mask = mask if mask.ndim == 3 else mask[None]
    return in_range(mask.float() if mask.dtype == torch.bool else mask, name)


def hides_all(mask: Tensor | None, name: str, owner: str) -> bool:
    """Whether a mask (m, h, w) is 0 everywhere. The log then says that the owner, a node, does nothing.

    That is no error: a graph that runs by itself may look for something that is not in every picture. What no byte can
    show counts as 0, because the host (0.30 and newer) gives some opaque pictures an alpha of 255/256.
    """
    if mask is None or mask.abs().max() > SHOWN:
        return False
    logger.warning(
        f"{owner} does nothing: {name} should be 1 where the node acts, but it is 0 everywhere, like the mask of a "
        f"picture without transparency. Paint it, or disconnect it to act everywhere."
    )
    return True


def checked_latent(latent: Any, name: str) -> Tensor:
    """Returns the samples (b, c, h, w) of a LATENT. Raises ValueError if they are of another shape or have NaN."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or samples.ndim != 4 or 0 in samples.shape:
        raise ValueError(
            f"{name} should be the latent of pictures, of shape (pictures, channels, height, width), but is "
            f"{shape_text(samples)}. Connect a VAE Encode."
        )
    return finite_tensor(samples, name, "finite numbers")


def checked_prompt(conditioning: Any, name: str) -> Tensor:
    """Returns the text (1 or n, tokens, width) of a CONDITIONING. Raises ValueError if it is not one prompt."""
    count = len(conditioning) if isinstance(conditioning, list) else 0
    text = conditioning[0][0] if count == 1 else None
    if not isinstance(text, Tensor) or text.ndim != 3:
        raise ValueError(
            f"{name} should be one prompt, but holds {count}. Connect one text; Conditioning (Concat) joins several."
        )
    return finite_tensor(text, name, "finite numbers")


def finite_tensor(values: Tensor, name: str, numbers: str = "numbers from 0 to 1") -> Tensor:
    """Returns a tensor (b, ...) as it is. Raises ValueError if some numbers are not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"{name} should hold {numbers}, but some are not finite (NaN). Look at what made it: a failed "
            f"VAE decode is a common cause."
        )
    return values


def shape_text(value: object) -> str:
    """Returns the shape of a tensor, or the type of anything else, for a message."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
