"""Temporary folders of servers, also those that a killed sweep has left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..tools.venv import lock

PREFIX = "reins-sweep-"
HELD = "held"  # a file that the owner of a folder has locked; the system frees it if the owner is killed


class ServerFolder:
    """A temporary folder. Making one removes those that nobody holds any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = (self.path / HELD).open("a")
        lock(self._held, wait=False)
        if not _is_free(self.path):  # else this file system does not lock, and any folder would look free
            for other in self.path.parent.glob(f"{PREFIX}*"):
                if (other / HELD).is_file() and _is_free(other):
                    shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Removes the folder."""
        self._held.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _is_free(folder: Path) -> bool:
    try:
        with (folder / HELD).open("a") as file:
            return lock(file, wait=False)
    except OSError:
        return False  # somebody else's
