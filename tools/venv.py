"""The cache folder, and the bare virtual environment in it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from .screen import DevError, say


def cache_folder() -> Path:
    """REINS_HOME, else `reins` in the folder where this system keeps caches."""
    if named := os.environ.get("REINS_HOME"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "reins"


def venv_python() -> Path:
    folder = cache_folder() / "venv"
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def installed_packages() -> dict[str, str]:
    """Versions of the distributions in the cached environment by name, read without starting its Python."""
    venv = cache_folder() / "venv"
    folders = [str(path) for path in (*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages"))]
    found = importlib.metadata.distributions(path=folders)
    return {normal_name(dist.metadata["Name"]): dist.version for dist in found if dist.metadata["Name"]}


def normal_name(requirement: str) -> str:
    """The bare name of a requirement line in the spelling that pip compares by; empty for comments and options."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def ensure_venv() -> bool:
    """Makes the environment if it is missing or has no pip; returns whether it was made.

    Raises DevError if this Python cannot make one.
    """
    if venv_python().exists() and "pip" in installed_packages():
        return False
    folder = cache_folder() / "venv"
    say(f"making a virtual environment in {folder}")
    options = ["--clear"] if folder.exists() and not venv_python().exists() else []  # its Python was uninstalled
    if subprocess.call([sys.executable, "-m", "venv", *options, str(folder)]) != 0:
        raise DevError(
            "this Python cannot make virtual environments; its message is above. On Debian and Ubuntu install "
            "python3-venv; elsewhere take a Python of python.org. Then run the same command again"
        )
    return True
