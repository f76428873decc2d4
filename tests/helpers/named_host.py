"""The host that the tests with a server use."""

from __future__ import annotations

import os
from pathlib import Path


def comfy() -> Path:
    """The folder that COMFYUI_PATH names, the first of several."""
    return Path(os.environ["COMFYUI_PATH"].split(os.pathsep)[0]).resolve()
