"""Files that no loader may open: one that would run code, one that ends too early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file


class Bomb:
    """An object that prints `executed` if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("executed",)


def truncated(path: Path) -> None:
    """Writes a .safetensors file whose last bytes are missing."""
    whole = path.with_suffix(".whole")
    save_file({"image_proj.proj.weight": torch.zeros(9, 9)}, whole)
    path.write_bytes(whole.read_bytes()[:-20])
