"""Which workers of a cluster are there: each is asked now and then, and one that is lost does not answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

ASKED_EVERY, SILENT, GONE = 5, 20, 120  # seconds between questions, until a worker counts as absent, and as gone


class Presence:
    """Asks workers, and remembers since when each has been silent."""

    def __init__(self, workers: Sequence[ActorHandle]) -> None:
        self._workers = list(workers)
        self._questions: dict[ray.ObjectRef, tuple[ActorHandle, float]] = {}  # whom, and when
        self._silent_since: dict[ActorHandle, float] = {}
        self._answered: dict[ActorHandle, float] = {}
        self._asked = 0.0

    def count(self) -> int:
        """How many workers answer."""
        return sum(self.silence(worker) < SILENT for worker in self._workers)

    def silence(self, worker: ActorHandle) -> float:
        """The seconds since the first question that a worker has not answered."""
        self._ask()
        return time.monotonic() - self._silent_since.get(worker, time.monotonic())

    def are_gone(self, workers: Collection[ActorHandle]) -> bool:
        """Whether all of them have been silent for so long that their machines must have left."""
        return bool(workers) and all(self.silence(worker) >= GONE for worker in workers)

    def has_answered(self, worker: ActorHandle, since: float) -> bool:
        """Whether a worker has answered a question that was asked after a time of the monotonic clock."""
        self._ask()
        return self._answered.get(worker, 0.0) > since

    def forget(self, worker: ActorHandle) -> None:
        """Asks a worker no more."""
        self._workers.remove(worker)

    def _ask(self) -> None:
        """Reads what has been answered, and asks again after a while."""
        asked = list(self._questions)
        for question in ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else []:
            worker, when = self._questions.pop(question)
            try:
                ray.get(question)
            except RayError:
                continue  # it is being started again, or is lost
            self._silent_since.pop(worker, None)
            self._answered[worker] = when
        if time.monotonic() - self._asked > ASKED_EVERY:
            self._asked = time.monotonic()
            waiting = {worker for worker, _ in self._questions.values()}
            for worker in self._workers:
                self._silent_since.setdefault(worker, self._asked)
                if worker not in waiting:
                    self._questions[worker.answer.remote()] = worker, self._asked
