"""What the person at the keyboard reads."""

from __future__ import annotations

import sys
import time

SECONDS_BETWEEN_LINES = 10  # without a terminal
WIDTH = 100


class DevError(Exception):
    """Something the person at the keyboard can put right; the text says how."""


def say(text: str) -> None:
    print(f"[reins] {text}", flush=True)


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
            print(f"\r{' ' * (WIDTH + 8)}\r", end="", flush=True)

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal and text != self._shown:
            print(f"\r[reins] {text:<{WIDTH}.{WIDTH}}", end="", flush=True)
        elif not self._terminal and now - self._last >= SECONDS_BETWEEN_LINES:
            say(text)
            self._last = now
        self._shown = text
