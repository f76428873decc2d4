"""The card that lies beside each file of weights: where it comes from and what it reaches."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .trainer import Plan


def write_card(path: Path, what: str, plan: Plan, seconds: float, curve: Path, numbers: Iterable[str]) -> None:
    """Writes the card <file>.md, with its curve <file>.png, beside the file at `path`."""
    if curve.exists():
        shutil.copyfile(curve, path.with_suffix(".png"))
    settings = ", ".join(f"{name} {value:g}" for name, value in asdict(plan).items())
    lines = [
        f"# {path.name}", "",
        what, "",
        f"- **Data:** {plan.steps * plan.batch:,} scenes, each drawn once (`demo/world/scenes.py`); nothing else.",
        f"- **Settings:** {settings}.",
        f"- **Time:** {seconds / 60:.0f} minutes.",
        f"- **Size:** {path.stat().st_size / 1e6:.2f} MB, float16.",
        "- **Licence:** that of the pack.", "",
        "## Numbers reached", "",
        "Measured on the file as it is, by `python3 dev.py train` at its end.", "",
        *[f"- {line}" for line in numbers], "",
        f"![Loss over the run]({path.with_suffix('.png').name})", "",
    ]  # fmt: skip
    path.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
