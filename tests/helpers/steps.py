"""How often the way of one sampling step leads from one file of the pack into another."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher

from .tiny_models import sample

ROOT = Path(__file__).parents[2]
CONSTRUCTORS = ("told", "changed")  # of what layers are told; a reader passes them by, as generated __init__
FOLDERS = tuple(f"{ROOT / name}/" for name in ("nodes", "engine", "models"))


class Steps(NamedTuple):
    """Of one sampling step: calls of the pack's functions, and those that lie in another file than the one before."""

    calls: int
    changes: int


def steps_of(model: ModelPatcher) -> Steps:
    """Counts a run of three steps less one of two, so that what happens once per run does not count."""
    sample(model, steps=1)  # what is loaded or made at the first use
    two, three = (_run(model, steps) for steps in (2, 3))
    return Steps(three.calls - two.calls, three.changes - two.changes)


def _run(model: ModelPatcher, steps: int) -> Steps:
    files: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDERS) and code.co_name not in CONSTRUCTORS:
            files.append(code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        sample(model, steps=steps)
    finally:
        sys.setprofile(before)
    return Steps(len(files), sum(file != last for last, file in zip(["", *files], files, strict=False)))
