"""Runs a script until the process that started it is gone: python leash.py SCRIPT [ARGUMENTS].

That process holds the other end of this one's standard input. The system closes it when that process ends, also after a
kill that leaves no time to clean up.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

STARTER_GONE = 1


def end_with_the_starter() -> None:
    """Waits for the end of the standard input, and ends this process."""
    while os.read(0, 1):
        pass
    os._exit(STARTER_GONE)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.getcwd()  # as for a script of this folder
    runpy.run_path(sys.argv[0], run_name="__main__")
