"""Files in parts, as diffusers and transformers save large ones: model-00001-of-00002.safetensors and so on.

An index beside them, model.safetensors.index.json, tells which part holds which tensor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .foreign_files import few

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
INDEX = re.compile(r".+\.index(\.\w+)?\.json")
MOST = 1000  # parts that a file may have


def parts_of(path: Path) -> list[Path]:
    """Returns the files that hold what a path names: all parts if it is an index or a part, or the path alone.

    Raises ValueError if a part is not beside it, or the index names none.
    """
    if INDEX.fullmatch(path.name):
        names = _named_by(path)
    elif (part := PART.fullmatch(path.name)) and 0 < int(part["count"]) <= MOST:
        count = int(part["count"])
        names = [f"{part['stem']}-{number:05}-of-{count:05}{part['suffix']}" for number in range(1, count + 1)]
    else:
        return [path]
    parts = [path.parent / Path(name).name for name in names]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(
            f"{path.name} belongs to a file in {len(parts)} parts, but {few(missing)} is not beside it. Put all parts "
            f"that the index (.index.json) names into one folder."
        )
    return parts


def _named_by(index: Path) -> list[str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in named.values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index.name} should be the index of a file in parts, but names none. Download it again."
        ) from error
    if not names:
        raise ValueError(f"{index.name} should be the index of a file in parts, but names none. Download it again.")
    return names
