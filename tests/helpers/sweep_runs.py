"""Starts `dev.py sweep`'s own script, and finds what it has started."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from reins.tools.sweeping import OF_RAY

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "sweep" / "run.py"
PATIENCE = 300  # seconds
GRAPH = "demo_pag_perturbed_attention"
SMALL = (GRAPH, "--only", "27", "--set", "2.batch_size=1", "--set", "24.steps=4")  # one picture of a second


class SweepRun:
    """A sweep in another process, with one thread for each server. What it says goes to a file."""

    def __init__(
        self, comfy: Path, out: Path, engine: Sequence[str], settings: Sequence[str], graph: Sequence[str] = SMALL
    ) -> None:
        self.out = out
        self._log = out.with_suffix(".log")
        sets = [part for text in settings for part in ("--set", text)]
        command = [sys.executable, str(SWEEP), *graph, *sets, *engine, "--out", str(out)]
        environment = {
            **os.environ,
            **OF_RAY,
            "COMFYUI_PATH": str(comfy),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> SweepRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.descendants(), psutil.Process(self.process.pid)] if self.process.poll() is None else ():
            process.kill()
        self.process.wait()

    def said(self) -> str:
        """All output until now."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def descendants(self) -> list[psutil.Process]:
        """All processes below the sweep."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self._seen |= {each.pid: each for each in found}
        return found

    def servers(self) -> list[psutil.Process]:
        """The ComfyUI servers below the sweep."""
        return list(self._with_command(lambda command: "main.py" in command))

    def workers(self) -> list[psutil.Process]:
        """The Ray actors below the sweep."""
        return list(self._with_command(lambda command: command and command[0].startswith("ray::Worker")))

    def _with_command(self, fits: Callable[[list[str]], bool]) -> Iterator[psutil.Process]:
        for each in self.descendants():
            try:
                if fits(each.cmdline()):
                    yield each
            except psutil.Error:
                continue

    def wait_for(self, rows: int) -> None:
        """Waits until so many rows have ended."""
        self._wait(lambda: len(list((self.out / "rows").glob("*.json"))) >= rows)

    def wait_until_all_are_gone(self) -> None:
        """Waits until no process is left of those that were seen below the sweep."""
        self._wait(lambda: not any(map(is_alive, self._seen.values())))

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def end(self) -> int:
        """Waits for the end and returns the exit code."""
        return self.process.wait(PATIENCE)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for is none."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def table(out: Path) -> list[dict[str, str]]:
    """The lines of results.csv."""
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels(out: Path, *settings: str) -> dict[tuple[str, ...], str]:
    """The hash of the pixels of each row by its settings; each row is there once, with its picture."""
    rows = table(out)
    found = {tuple(row[name] for name in settings): row["pixels_sha256"] for row in rows}
    assert len(found) == len(rows)
    assert len(list((out / "rows").iterdir())) == len(list((out / "pictures").iterdir())) == len(rows)
    return found
