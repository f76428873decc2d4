"""The line of progress, on a terminal and without one."""

from __future__ import annotations

import contextlib
import io
import os

from reins.tools import screen


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown_lines(terminal: bool, monkeypatch) -> str:
    """What 31 seconds of progress leave on a screen."""
    clock = iter(range(1000))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    out = Screen(terminal)
    with contextlib.redirect_stdout(out), screen.ProgressLine() as line:
        for second in range(31):
            line.show(f"{second} MB")
    return out.getvalue()


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(monkeypatch):
    assert shown_lines(False, monkeypatch).splitlines() == ["[reins] 9 MB", "[reins] 19 MB", "[reins] 29 MB"]


def test_on_a_terminal_progress_is_one_line_that_is_wiped_at_the_end(monkeypatch):
    monkeypatch.setattr(screen.shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    said = shown_lines(True, monkeypatch)
    assert {len(line) for line in said.split("\r")[1:-1]} == {39}  # wider lines would wrap
    assert "\n" not in said
    assert said.count("MB") == 31
    assert said.rsplit("\r", 2)[1].strip() == ""
