"""Processes that dev.py starts, and how they end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
TERMINATED = 143
INTERRUPTED = 130

_children: list[subprocess.Popen[bytes]] = []


def end_children(*_: object) -> NoReturn:
    """Passes SIGTERM on, which unlike Ctrl-C reaches this process alone; children clean up on an interrupt."""
    for child in _children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    sys.exit(TERMINATED)


def start_child(
    command: Sequence[str], environment: Mapping[str, str] | None = None, captured: bool = False
) -> subprocess.Popen[bytes]:
    """A process that ends when this one is told to; `captured` gives its output and errors as one pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if captured else {}
    child = subprocess.Popen(list(command), cwd=ROOT, env=environment, **pipes)
    _children.append(child)
    return child


def module_command(python: Path, module: str) -> list[str]:
    """Runs a module of this checkout, as `-m` does where a Python looks for modules in the current folder."""
    code = "import runpy, sys; sys.path.insert(0, {!r}); runpy.run_module({!r}, run_name='__main__', alter_sys=True)"
    return [str(python), "-c", code.format(str(ROOT), module)]


def child_environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **extra}


def run_child(command: Sequence[str], **extra: str) -> int:
    """Returns the exit code of a child that ends itself on Ctrl-C; it is left time to clean up."""
    with start_child(command, child_environment(**extra)) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.wait()
            return INTERRUPTED
