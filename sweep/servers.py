"""The engine for servers that this machine reaches: one of our own, or running ones by their URLs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..demo.host import HostDied
from .errors import SweepError
from .needs import Need, missing
from .outcome import Outcome
from .prompt import WorkerLost
from .server import OwnServer, RunningServer

if TYPE_CHECKING:
    from ..demo.client import Json
    from .plan import Row

Server: TypeAlias = "OwnServer | RunningServer"
TICK = 1  # seconds


class Servers:
    """Gives each server a row as it becomes free."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers

    def __enter__(self) -> Servers:
        try:
            for server in self._servers:
                self._start(server)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @staticmethod
    def _start(server: Server) -> None:
        try:
            server.start()
        except (HostDied, OSError, ValueError) as error:
            raise SweepError(f"no ComfyUI answers at {server.name}: {error}") from error

    def _end(self) -> None:
        for server in self._servers:
            server.end()

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._servers)

    @property
    def alive(self) -> int:
        """How many of them answered the last time."""
        return sum(server.is_alive for server in self._servers)

    def object_info(self) -> dict[str, Json]:
        """The nodes of the first server."""
        return self._servers[0].start().object_info()

    def missing(self, needs: Sequence[Need]) -> dict[str, list[str]]:
        """What each server lacks, by its name."""
        return {server.name: missing(needs, server.start().object_info()) for server in self._servers}

    def run(self, rows: Sequence[Row]) -> Iterator[Outcome | None]:
        """The outcomes as they come, and None after a second without any. Rows are left out once no server is left."""
        waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
        ended: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        for row in rows:
            waiting.put(row)
        threads = [threading.Thread(target=_serve, args=(each, waiting, ended), daemon=True) for each in self._servers]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            try:
                outcome = ended.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if outcome is None:
                running -= 1
            else:
                yield outcome


def _serve(server: Server, waiting: queue.SimpleQueue[Row], ended: queue.SimpleQueue[Outcome | None]) -> None:
    """Runs rows until there are no more, or until the server is lost and does not start again."""
    try:
        server.start()
        while True:
            row = waiting.get_nowait()
            try:
                ended.put(server.run(row.key, row.graph))
            except WorkerLost as error:
                ended.put(Outcome(row.key, server.name, error=str(error)))
                server.start()
    except (queue.Empty, HostDied, OSError):
        pass  # no row is left, or this server does not come back: the others go on
    finally:
        ended.put(None)
