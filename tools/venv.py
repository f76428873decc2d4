"""The cache folder, and the bare virtual environment in it."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .screen import DevError, say

MARK = "made-by-dev.py"  # tells our environment from one that lay in the folder before
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
LEFT_BEHIND = ("scratch-*", "partial-*")  # of set-ups that were killed


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


def venv_folder() -> Path:
    return cache_folder() / "venv"


def venv_python() -> Path:
    return venv_folder() / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@contextlib.contextmanager
def setting_up() -> Iterator[None]:
    """For one dev.py at a time; another one waits, and finds done what this one has done.

    Raises DevError if the cache folder cannot be written to.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise DevError(
            f"{folder} cannot be used as the cache folder: {reason}. Set REINS_HOME to a folder that can be written to"
        ) from error
    with (folder / "lock").open("a") as file:
        if not lock(file, wait=False):
            say("another dev.py is setting up; waiting for it")
            while not lock(file, wait=True):
                pass
        for path in (path for pattern in LEFT_BEHIND for path in folder.glob(pattern)):
            shutil.rmtree(path, ignore_errors=True)
        yield


def lock(file: IO[str], wait: bool) -> bool:
    """Whether this process now holds the file, which it does until it closes it or ends.

    True as well if the file system cannot lock: waiting would never end there.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in HELD_BY_ANOTHER
    return True


def installed_packages() -> dict[str, str]:
    """Versions of the distributions in the cached environment by name, read without starting its Python."""
    folders = [*venv_folder().glob("lib/python*/site-packages"), *venv_folder().glob("Lib/site-packages")]
    found = importlib.metadata.distributions(path=[str(folder) for folder in folders])
    return {normal_name(dist.metadata["Name"]): dist.version for dist in found if dist.metadata["Name"]}


def normal_name(requirement: str) -> str:
    """The bare name of a requirement line in the spelling that pip compares by; empty for comments and options."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def numbers(version: str) -> tuple[int, ...]:
    """A version that compares as numbers, so that 0.33 is above 0.8."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def venv_works() -> bool:
    """Whether its Python starts and has a pip; an update of the system's Python can take both away."""
    try:
        return subprocess.run([venv_python(), "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def ensure_venv() -> bool:
    """Makes the environment if it is missing or does not work; returns whether it was made.

    Raises DevError if this Python cannot make one, or if the folder holds somebody else's environment.
    """
    folder = venv_folder()
    ours = (folder / MARK).exists() or (folder / "reins-setup.json").exists()
    if (folder / "pyvenv.cfg").exists() and not ours:
        raise DevError(f"{folder} is an environment that dev.py did not make; set REINS_HOME to another folder")
    if venv_works():
        return False
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise DevError(
            f"{sys.executable} cannot make virtual environments: it has no {missing[0]}. On Debian and Ubuntu install "
            "python3-venv; elsewhere take a Python of python.org. Then run the same command again"
        )
    say(f"making a virtual environment in {folder}")
    shutil.rmtree(folder, ignore_errors=True)  # half made, or of a Python that is gone
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    if subprocess.call([sys.executable, "-m", "venv", str(folder)]) != 0:
        raise DevError(f"no virtual environment could be made in {folder}; the reason is above")
    return True
