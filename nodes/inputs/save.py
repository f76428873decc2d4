"""The paths to which the save nodes write."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...engine.folders import output_folder


def numbered_path(folder: str, filename_prefix: str) -> Path:
    """Returns the next free file of that name in output/`folder`. Raises ValueError if the name leads out of it."""
    root = output_folder(folder).resolve()
    target = (root / filename_prefix).resolve()
    if not target.is_relative_to(root) or target == root:
        raise ValueError(
            f"filename_prefix {filename_prefix!r} should name a file inside {root.name}. Leave out '..' and drives."
        )
    place, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, str(root))
    return Path(place) / f"{name}_{counter:05}_.safetensors"
