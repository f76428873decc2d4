"""Methods that work on pictures, and what they say of latents that are none.

A node looks at the model. What is sampled is looked at before the network is loaded or called, and again in the loop
for code that calls the host's sampling function without a guider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .entries import install_wrapper

WRAPPER = "reins_latents"


def check_format(model: ModelPatcher, owner: str) -> None:
    """Raises ValueError if the latents of a model have no rows and columns, as those of sound have none."""
    latent_format = model.model.latent_format
    if latent_format.latent_dimensions == 1:
        raise ValueError(
            f"{owner} takes latents with rows and columns, but those of this model "
            f"({type(latent_format).__name__}) have one length alone. Remove the node from this model."
        )


def check_shape(shape: Sequence[int], owner: str, videos: bool = False) -> None:
    """Looks at the shape of a latent: (b, c, h, w), or (b, c, t, h, w) with a single frame, or with `videos` any.

    Raises ValueError if it is another.
    """
    if len(shape) not in (4, 5):
        raise ValueError(
            f"{owner} takes latents with rows and columns, but this one is {tuple(shape)}. Remove the node from this "
            f"model."
        )
    if len(shape) == 5 and shape[2] != 1 and not videos:
        raise ValueError(
            f"{owner} takes latents of pictures, but this one is a video with {shape[2]} frames in the latent, "
            f"{tuple(shape)}. Make a latent of one frame, or remove the node."
        )


def check_before_sampling(model: ModelPatcher, owner: str, videos: bool = False) -> None:
    """Makes a clone refuse to sample a latent that `check_shape` refuses."""

    def check(executor: Any, patcher: ModelPatcher, shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        check_shape(shape, owner, videos)
        return executor(patcher, shape, *args, **kwargs)

    install_wrapper(model, WrappersMP.PREPARE_SAMPLING, check, f"{WRAPPER}: {owner}")
