"""Image tokens as files: tensors of one encoded prompt, and the name of the adapter that made them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ...engine.loading import check_finite, check_tensors, read_file, read_metadata
from .prompt import ImageTokens

MADE_BY, FINGERPRINT = "made_by", "fingerprint"


def save_tokens(tokens: ImageTokens, path: Path) -> None:
    """Writes tokens to a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "cond": tokens.cond, "uncond": tokens.uncond, "black": tokens.black, "weights": tokens.weights
    }  # fmt: skip
    metadata = {MADE_BY: tokens.made_by, FINGERPRINT: tokens.fingerprint}
    save_file({name: value.contiguous().clone() for name, value in content.items()}, path, metadata)


def load_tokens(path: Path) -> ImageTokens:
    """Returns the tokens of a file. Raises ValueError if it holds something else."""
    content = read_file(path)
    cond = content.get("cond", torch.empty(0, 0, 0))
    images, count, context = cond.shape if cond.ndim == 3 else (0, 0, 0)
    one = (1, count, context)
    check_tensors(
        {"cond": (images, count, context), "uncond": one, "black": one, "weights": (images,)}, content, path.name
    )
    check_finite(content, path.name)
    metadata = read_metadata(path)
    made_by, fingerprint = metadata.get(MADE_BY, path.name), metadata.get(FINGERPRINT, "")
    return ImageTokens(**content, made_by=made_by, fingerprint=fingerprint)
