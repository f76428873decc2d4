"""A ComfyUI of our own for a sweep: with the pack, and with the models and inputs of its ComfyUI folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..demo.host import Host, HostSettings, link_folder
from .folders import ServerFolder
from .outcome import Outcome
from .prompt import WorkerLost, run_prompt

if TYPE_CHECKING:
    from ..demo.client import Client, Graph

SHARED = ("models", "input")  # folders of the ComfyUI that the server reads


class OwnServer:
    """A server that is started again if it has ended. What it saves lies in a temporary folder until the sweep ends."""

    def __init__(self, name: str, comfy: Path, cpu: bool, environment: Mapping[str, str]) -> None:
        self.name = name
        self._folder = ServerFolder()
        base = self._folder.path
        for shared in SHARED:
            if (comfy / shared).is_dir():
                link_folder(comfy / shared, base / shared)
        self._settings = HostSettings(comfy, base, cpu=cpu, environment=environment)
        self._host: Host | None = None
        self._ended = False

    @property
    def is_alive(self) -> bool:
        """Whether the server has been started and not been lost since."""
        return self._host is not None

    def start(self) -> Client:
        """The client of the server, which is started if it does not run. Raises HostDied if it does not start."""
        if self._host is None:
            host = Host(self._settings)
            host.__enter__()
            self._host = host
        return self._host.client

    def run(self, key: str, graph: Graph) -> Outcome:
        """What the server makes of a graph.

        The next call starts a server that was lost. Raises WorkerLost if the server ended while it ran. Raises HostDied
        if it does not start.
        """
        if self._ended:
            raise WorkerLost(f"{self.name} has been ended")
        client = self.start()
        try:
            return run_prompt(client, key, graph, self.name)
        except WorkerLost:
            self._end_host()
            raise

    def end(self) -> None:
        """Ends the server for good."""
        self._ended = True
        self._end_host()
        self._folder.remove()

    def _end_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.__exit__(None, None, None)


class RunningServer:
    """A ComfyUI that somebody else started, by its URL."""

    def __init__(self, url: str) -> None:
        from ..demo.client import Client

        self.name = url.rstrip("/")
        self._client = Client(self.name)
        self.is_alive = False

    def start(self) -> Client:
        """The client of the server. Raises OSError if it does not answer."""
        self._client.get("/system_stats")
        self.is_alive = True
        return self._client

    def run(self, key: str, graph: Graph) -> Outcome:
        """What the server makes of a graph. Raises WorkerLost if it does not answer."""
        try:
            return run_prompt(self._client, key, graph, self.name)
        except WorkerLost:
            self.is_alive = False
            raise

    def end(self) -> None:
        """Does nothing: the server belongs to somebody else."""
