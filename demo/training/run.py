"""Runs a training task by its name, and writes its file and card."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import comfy.model_management

from .card import write_card
from .files import write_weights
from .tasks import RUNS
from .trainer import Interrupted, Plan, train


def run(name: str, change: Callable[[Plan], Plan], states: Path, out: Path | None, fresh: bool) -> int:
    """Trains a task with a changed plan, and writes its file and card. Returns the exit code."""
    task = RUNS[name].make(comfy.model_management.get_torch_device())
    plan = change(task.plan)
    folder = states / name
    if fresh and folder.exists():
        shutil.rmtree(folder)
    try:
        state = train(task, plan, folder)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    path = out or task.file
    write_weights(state.average, path, {"trained": json.dumps({"task": name, **asdict(plan)})})
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB); measuring it", flush=True)
    write_card(path, task.what, plan, state.seconds, folder / "curve.png", RUNS[name].numbers(path))
    print(f"its card, with curve and numbers: {path.with_suffix('.md')}")
    return 0
