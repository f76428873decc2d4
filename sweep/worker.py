"""A worker of a Ray cluster: an actor with a ComfyUI of its machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray

from ..demo.host import HostDied
from ..tools.hosts import present_hosts
from ..tools.screen import DevError
from .needs import Need, missing
from .outcome import Outcome
from .prompt import WorkerLost
from .server import OwnServer

if TYPE_CHECKING:
    from ..demo.client import Graph, Json

ASKING = "asking"  # a second thread of the actor, which answers while the first one runs a prompt
SERVER_LOST = 1


class Unfit(Exception):
    """This worker can run no prompt. The text says why."""


@ray.remote(concurrency_groups={ASKING: 1})
class Worker:
    """Runs prompts on a server that it starts. If the server is lost, it ends too, and Ray starts both again."""

    def __init__(self, number: int, cores: int) -> None:
        self._name = f"worker {number} on {socket.gethostname()}"
        self._cores = cores
        self._server: OwnServer | None = None
        self._fit = self._ending = False

    def name(self) -> str:
        """What people call it."""
        return self._name

    def object_info(self) -> dict[str, Json]:
        """The nodes that its server knows. Raises Unfit if the server does not start."""
        return self._started().start().object_info()

    def missing(self, needs: Sequence[Need]) -> list[str]:
        """What its server lacks. Raises Unfit if the server does not start."""
        return missing(needs, self.object_info())

    def run(self, key: str, graph: Graph, needs: Sequence[Need]) -> Outcome:
        """What its server makes of a graph, once this machine has all files: Ray may have moved the worker.

        Raises Unfit if the server does not start, or if it lacks a file.
        """
        server = self._started()
        if not self._fit:
            if lacks := self.missing(needs):
                raise Unfit(f"{self._name} has {'; '.join(lacks)}")
            self._fit = True
        try:
            return server.run(key, graph)
        except WorkerLost as error:
            if self._ending:
                raise Unfit(f"{self._name} has been ended") from error
            os._exit(SERVER_LOST)

    @ray.method(concurrency_group=ASKING, max_task_retries=0)
    def end(self) -> None:
        """Ends its server, also in the middle of a prompt, and removes what lies on this machine."""
        self._ending = True
        if self._server is not None:
            self._server.end()

    def _started(self) -> OwnServer:
        try:
            if self._server is None:
                on_gpu = bool(ray.get_gpu_ids())
                threads = {} if on_gpu else {"OMP_NUM_THREADS": str(self._cores), "OMP_WAIT_POLICY": "PASSIVE"}
                hosts = present_hosts()
                if not hosts:
                    raise Unfit(f"{self._name} has no ComfyUI: set COMFYUI_PATH before `dev.py ray start`")
                self._server = OwnServer(self._name, hosts[0].path, not on_gpu, threads)
            self._server.start()
        except (HostDied, DevError, OSError) as error:
            raise Unfit(f"{self._name} has no ComfyUI that starts: {error}") from error
        return self._server

    @ray.method(concurrency_group=ASKING, max_task_retries=0)
    def answer(self) -> None:
        """Shows that the worker is there."""
