"""Starts a real ComfyUI server without a window, with packs linked into a separate base directory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .client import Client

ROOT = Path(__file__).resolve().parent.parent
PACK = {"ComfyUI-Reins": ROOT}
LEASH = ROOT / "demo" / "leash.py"
LOG_TAIL = 4000


class HostDied(Exception):
    """The server ended, or did not answer in time. The text has the end of its log."""


@dataclass(frozen=True)
class HostSettings:
    """What to start and where. The server reads models, packs and settings from `base` alone."""

    comfy: Path
    base: Path
    packs: Mapping[str, Path] = field(default_factory=lambda: dict(PACK))
    cpu: bool = True
    port: int | None = None
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    boot_seconds: float = 180

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.base / "models" / "checkpoints"


class Host:
    """A server that lives as long as a `with` block. `client` talks to it."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.port = settings.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url, self.log_tail)
        self.boot_seconds = 0.0
        self._log_path = settings.base / "server.log"
        self._database = settings.base / f"server-{self.port}.db"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        check_port(self.port)
        prepare_base(self.settings)
        self._database.unlink(missing_ok=True)  # another version of ComfyUI may have left it
        start = time.monotonic()
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.settings.comfy,
                env=server_env() | dict(self.settings.environment),
                stdin=subprocess.PIPE,  # nothing is written: the leash waits for its end
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready(start + self.settings.boot_seconds)
        except BaseException:
            self._end()
            raise
        self.boot_seconds = time.monotonic() - start
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def wait(self) -> int:
        """Waits until the server ends by itself. Returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends the server as a crash would, with no time to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """The server's log."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        """The end of the server's log."""
        return self.log()[-LOG_TAIL:]

    def _command(self) -> list[str]:
        settings = self.settings
        # a thread of Windows that waits for the standard input holds up others that ask for its kind
        leash = [] if sys.platform == "win32" else [str(LEASH)]
        command = [sys.executable, *leash, "main.py", "--listen", "127.0.0.1", "--port", str(self.port)]
        # not in memory: ComfyUI 0.16 finds no tables there and logs errors without end
        command += ["--base-directory", str(settings.base), "--database-url", f"sqlite:///{self._database}"]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "latent2rgb"]
        return command + (["--cpu"] if settings.cpu else []) + list(settings.arguments)

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HostDied(f"the server ended with {self._process.returncode}:\n{self.log_tail()}")
            try:
                self.client.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise HostDied(f"the server did not answer within {self.settings.boot_seconds:.0f} s:\n{self.log_tail()}")

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()


def free_port() -> int:
    """A port of the loopback address that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raises HostDied if another program listens on the port."""
    if not port_is_free(port):
        raise HostDied(f"port {port} is in use: end the program that holds it, or take another one (--port)")


def port_is_free(port: int) -> bool:
    """Whether nothing listens on the port. Another ComfyUI would answer in the place of one that failed to start."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def server_env() -> dict[str, str]:
    """The environment of the server: this one, without downloads, and with a log in UTF-8."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def prepare_base(settings: HostSettings) -> None:
    """Makes the folders that the server expects below its base directory, and links the packs."""
    for folder in ("input", "output", "temp", "user"):
        (settings.base / folder).mkdir(parents=True, exist_ok=True)
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    packs = settings.base / "custom_nodes"
    packs.mkdir(exist_ok=True)
    for name, target in settings.packs.items():
        link_folder(target, packs / name)


def link_folder(target: Path, link: Path) -> None:
    """Makes `link` lead to a folder, by a symlink, or on Windows by a junction, which needs no special right."""
    if link.is_dir() and link.samefile(target):
        return
    if os.path.lexists(link):
        # a link to a checkout that has moved. rmdir refuses a folder that holds anything
        link.unlink() if link.is_symlink() else link.rmdir()
    if sys.platform == "win32":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(target, target_is_directory=True)


def offer_file(source: Path, folder: Path) -> str:
    """Makes a file appear in a model folder, by a link if the system allows one. Returns its name there."""
    place = folder / source.name
    if place.exists() and place.samefile(source):
        return place.name
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(source.resolve())
    except OSError:  # Windows without the right to make symlinks
        try:
            os.link(source, place)
        except OSError:  # another volume
            shutil.copy(source, place)
    return place.name


def has_accelerator() -> bool:
    """Whether torch can compute on something other than the CPU."""
    import torch

    if hasattr(torch, "accelerator"):
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def weightless_arguments(comfy: Path) -> tuple[str, ...]:
    """The server options for a checkpoint without weights.

    Its tensors overlap in memory, which the dynamic memory of newer hosts would take over as parameters.
    """
    option = "--disable-dynamic-vram"
    known = option in (comfy / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return (option,) if known else ()


def write_weightless(comfy: Path, kind: str, folder: Path) -> str:
    """Writes a checkpoint without weights, in another process, which imports the host. Returns the file's name."""
    path = folder / f"reins-weightless-{kind}.ckpt"
    if not path.exists():
        script = str(ROOT / "demo" / "weightless.py")  # by its path: some Pythons find no module in the current folder
        command = [sys.executable, script, "--comfy", str(comfy), "--kind", kind, "--out", str(path)]
        subprocess.run(command, cwd=ROOT, env=server_env(), check=True)
    return path.name
