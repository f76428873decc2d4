"""Other editors than the one that is installed, for the tests: folders beside the cached environment."""

from __future__ import annotations

import re
from pathlib import Path

from .packages import Step, check_registry, run_steps
from .screen import DevError
from .venv import cache_folder, setting_up

PACKAGE, NEWEST = "comfyui-frontend-package", "1.58.1"


def newest_frontend() -> Path:
    """The newest editor: the folder that ComfyUI takes as `--front-end-root`, installed if it is not there.

    Raises DevError if it cannot be had.
    """
    return _frontend(NEWEST)


def own_frontend(comfy: Path) -> Path:
    """The same for the editor that a ComfyUI pins in its requirements.

    Raises DevError if it pins none, or if that cannot be had.
    """
    found = re.search(rf"^{PACKAGE}==(\S+)", (comfy / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise DevError(f"{comfy / 'requirements.txt'} names no version of {PACKAGE}")
    return _frontend(found[1])


def _frontend(version: str) -> Path:
    folder = cache_folder() / f"frontend-{version}"
    with setting_up():
        if not folder.is_dir():
            requirement = f"{PACKAGE}=={version}"
            check_registry(requirement)
            partial = folder.with_name(f"partial-{folder.name}")  # an interrupted one must not pass for the whole
            run_steps([Step("another editor", ("--no-deps", "--target", str(partial), requirement))])
            partial.rename(folder)
    return folder / "comfyui_frontend_package" / "static"
