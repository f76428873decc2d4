"""pip in the cached environment: its output goes to a log, the screen shows one line of progress."""

from __future__ import annotations

import os
import platform
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from .children import start_child
from .screen import DevError, ProgressLine, say
from .venv import cache_folder, installed_packages, numbers, venv_python

ELSEWHERE = (
    "PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN", "PIP_CONSTRAINT",
)  # fmt: skip
UNKNOWN_NAME = r"name resolution|getaddrinfo|nodename nor servname|Name or service not known"
RAW_PROGRESS = (24, 1)  # the first pip with --progress-bar raw
MEGABYTE = 1_000_000
ERRORS_SHOWN = 4
AGAIN = "Run the same command again: it goes on where this one stopped"


class Step(NamedTuple):
    """One call of pip; what it has installed stays if a later one fails or is interrupted."""

    what: str
    arguments: tuple[str, ...]


def log_file() -> Path:
    return cache_folder() / "setup.log"


def run_steps(steps: Sequence[Step]) -> None:
    """Installs one after the other.  Raises DevError if one fails; the steps before it need not be done again."""
    with ProgressLine() as line:
        for number, step in enumerate(steps, 1):
            doing = f"step {number} of {len(steps)}, {step.what}"
            try:
                run_pip(("install", *step.arguments), doing, line)
            except KeyboardInterrupt:
                say(f"interrupted in {doing}. {AGAIN}")
                raise


def pip_command(*arguments: str) -> list[str]:
    return [str(venv_python()), "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]


def pip_environment() -> dict[str, str]:
    """Ours, without the settings by which pip would install elsewhere, or nothing, or other versions."""
    settings = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return settings | {"PIP_USER": "0"}


def run_pip(arguments: Sequence[str], doing: str, line: ProgressLine) -> None:
    """Runs pip with a line on the screen that begins with `doing`.

    Raises DevError with pip's own errors if it fails.
    """
    watch = PipWatch(doing)
    command = pip_command(*arguments)
    command += ["--progress-bar", "raw"] if watch.pip_version >= RAW_PROGRESS else []
    # on the disk whose free space was checked, not in a small /tmp
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=cache_folder(), ignore_cleanup_errors=True) as scratch:
        environment = pip_environment() | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
        with log_file().open("a", encoding="utf-8") as log, start_child(command, environment, captured=True) as pip:
            assert pip.stdout is not None
            log.write(f"$ {' '.join(command)}\n")
            for text in _lines(pip.stdout):
                watch.read(text, log)
                line.show(watch.text())
    if pip.returncode != 0:
        raise DevError(f"pip failed while {doing}:\n  {watch.errors()}\n{AGAIN}. All that pip said: {log_file()}")


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come, and an empty one for each second without any."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in stream:
                lines.put(line)
        except ValueError:
            pass  # closed while it is read, after an interrupt
        finally:
            lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            yield ""
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip()


class PipWatch:
    """Reads what pip prints: the package that it works on, and how far its file has come."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._step = ""
        self._errors: list[str] = []
        self.pip_version = numbers(installed_packages().get("pip", "0"))

    def read(self, text: str, log: IO[str]) -> None:
        """Takes one line; all but the counts of bytes go to the log."""
        if counts := re.match(r"Progress (\d+) of (\d+)", text):
            done, total = (int(count) / MEGABYTE for count in counts.groups())
            self._step = f"{self._step.partition(',')[0]}, {done:,.1f} of {total:,.1f} MB"
            return
        if not text:
            return
        log.write(text + "\n")
        log.flush()
        if text.startswith(("ERROR:", "error:")) or "Retrying (" in text or "The user requested" in text:
            self._errors.append(text)
        elif found := re.match(r"\s*(?:Downloading|Using cached) (?:\S*/)?([^\s/]+?)-(\d[^-\s]*)\S* \(([^)]+)\)", text):
            self._step = f"{found[1]} {found[2]}, {found[3]}"
        elif found := re.match(r"(?:Collecting|Processing) ([A-Za-z0-9._-]+)", text):
            self._step = f"looking at {found[1]}"
        elif found := re.match(r"Installing collected packages: (.+)", text):
            names = found[1].split(", ")
            self._step = f"unpacking {names[0]}" if len(names) == 1 else f"unpacking {len(names)} packages"

    def text(self) -> str:
        return f"{self._doing}: {self._step}" if self._step else self._doing

    def errors(self) -> str:
        return "\n  ".join(self._errors[-ERRORS_SHOWN:]) or "it gave no reason"


def check_registry(needed: str) -> None:
    """Asks the package registry once for a pinned package, so that what is missing is known at once.

    Raises DevError that tells a missing network, a registry that does not answer and a package that does not exist for
    this Python and system from each other.
    """
    name, _, version = needed.partition("==")
    command = pip_command("index", "versions", name, "--ignore-requires-python", "--retries", "1", "--timeout", "15")
    with start_child(command, pip_environment(), captured=True) as pip:
        assert pip.stdout is not None
        said = pip.stdout.read().decode("utf-8", "replace")
    offered = re.findall(r"^Available versions: (.+)$", said, re.MULTILINE)
    versions = offered[0].strip().split(", ") if offered else []
    if version in versions:
        return
    if versions:
        raise DevError(
            f"there is no {name} {version} for Python {sys.version_info.major}.{sys.version_info.minor} on this "
            f"system ({platform.machine()}); the registry has {versions[0]} and others. Take another Python (3.11 was "
            "tested), or put this checkout into the custom_nodes of a ComfyUI and use its Python"
        )
    if re.search(UNKNOWN_NAME, said):
        reason = "there is no network: the name of the package registry cannot be resolved"
    elif found := re.search(r"\[(?:Errno|WinError) -?\d+\] ([^'\")]+)|(timed out|CERTIFICATE_VERIFY_FAILED)", said):
        reason = f"the package registry cannot be reached: {found[1] or found[2]}"
    else:
        reason = "the package registry does not answer:\n  " + "\n  ".join(said.strip().splitlines()[-ERRORS_SHOWN:])
    raise DevError(
        f"{reason}.\nThe first run needs it once, to install packages. Connect, or set what your network asks for "
        "(HTTPS_PROXY, pip's index-url), and run the same command again"
    )
