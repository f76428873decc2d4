"""Where the host lies that the tests run or start; imports nothing of it."""

from __future__ import annotations

import os
from pathlib import Path


def host_folder() -> Path:
    """The folder that COMFYUI_PATH names, the first of several."""
    return Path(os.environ["COMFYUI_PATH"].split(os.pathsep)[0]).resolve()
