"""Shows how far a running workflow is: by a bar on a terminal, elsewhere by a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from .client import Event, Graph

BAR = "  {desc:<28.28} {percentage:3.0f}%|{bar:24}| {elapsed} {postfix}"
LINE_SECONDS = 10


class ProgressBar:
    """Shows the events of the websocket in one line: the node that runs, and how far it is."""

    def __init__(self, name: str, graph: Graph) -> None:
        self._graph = graph
        self._bar = tqdm(total=1, desc=name, bar_format=BAR, leave=False, file=sys.stdout, disable=None)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        node = event.data.get("node") if event.kind in ("executing", "progress") else None
        if node is None:
            return
        if event.kind == "progress":
            self._bar.total, self._bar.n = event.data["max"], event.data["value"]
        self._bar.set_postfix_str(self._graph.get(node, {}).get("class_type", node))


class ProgressLines:
    """Prints a line every ten seconds, also while the server sends nothing. It needs no terminal."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._name, self._graph, self._clock = name, graph, clock
        self._node, self._percent = "waiting for the server", 0
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait  # true once the workflow has ended
        self._start = clock()
        self._thread = threading.Thread(target=self.report, daemon=True)

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self, event: Event) -> None:
        node = event.data.get("node") if event.kind in ("executing", "progress") else None
        if node is None:
            return
        self._node = self._graph.get(node, {}).get("class_type", node)
        self._percent = 100 * event.data["value"] // event.data["max"] if event.kind == "progress" else 0

    def report(self) -> None:
        """Prints how far the workflow is, every ten seconds until it has ended."""
        while not self._wait(LINE_SECONDS):
            seconds = self._clock() - self._start
            print(f"  {self._name}: {self._node} {self._percent} %, {seconds:.0f} s", flush=True)


def progress(name: str, graph: Graph) -> ProgressBar | ProgressLines:
    """A bar in a terminal, else lines, to show a person how far the workflow is."""
    return ProgressBar(name, graph) if sys.stdout.isatty() else ProgressLines(name, graph)
