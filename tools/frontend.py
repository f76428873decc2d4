"""A newer editor than the one that ComfyUI pins, for the tests: a folder beside the cached environment."""

from __future__ import annotations

from pathlib import Path

from .packages import Step, check_registry, run_steps
from .venv import cache_folder, setting_up

NEWEST = "1.58.1"


def newest_frontend() -> Path:
    """The folder that ComfyUI takes as `--front-end-root`, installed if it is not there.

    Raises DevError if it cannot be had.
    """
    folder = cache_folder() / f"frontend-{NEWEST}"
    with setting_up():
        if not folder.is_dir():
            requirement = f"comfyui-frontend-package=={NEWEST}"
            check_registry(requirement)
            partial = folder.with_name(f"partial-{folder.name}")  # an interrupted one must not pass for the whole
            run_steps([Step("a newer editor", ("--no-deps", "--target", str(partial), requirement))])
            partial.rename(folder)
    return folder / "comfyui_frontend_package" / "static"
