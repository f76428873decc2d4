"""What the person at the keyboard reads."""

from __future__ import annotations

import shutil
import sys
import time

SECONDS_BETWEEN_LINES = 10  # without a terminal
PREFIX = "[reins] "


class DevError(Exception):
    """Something the person at the keyboard can put right; the text says how."""


def say(text: str) -> None:
    print(f"{PREFIX}{text}", flush=True)


def room() -> int:
    """The columns of the terminal behind the prefix; the last one stays free, for some terminals wrap at it."""
    return max(1, shutil.get_terminal_size().columns - len(PREFIX) - 1)


class ProgressLine:
    """One line that changes on a terminal; elsewhere a new line every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = time.monotonic()
        self._shown = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            print(f"\r{' ' * (len(PREFIX) + room())}\r", end="", flush=True)

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal and text != self._shown:
            width = room()
            print(f"\r{PREFIX}{text:<{width}.{width}}", end="", flush=True)
        elif not self._terminal and now - self._last >= SECONDS_BETWEEN_LINES:
            say(text)
            self._last = now
        self._shown = text
