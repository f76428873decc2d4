"""The engine for Ray: workers on this machine, or on all machines of a cluster.

Ray starts the workers and starts them again, gives a row that a worker lost to that worker once more, and brings the
pictures here. What is left after that is left to the drive.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util import ActorPool

from ..demo.host import ROOT
from ..tools.screen import say
from ..tools.sweeping import LOCAL
from .errors import SweepError
from .needs import Need
from .outcome import Outcome
from .worker import Worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from ..demo.client import Json
    from .plan import Row

LEFT_OUT = ("/tests/", "/bench/", "/docs/", "/findings/", "/example_workflows/", "/output/", ".git")
TICK = 1  # seconds
ASKED_EVERY, SILENT, GONE = 5, 20, 120  # seconds between questions; until a worker counts as absent, and as lost
START_SECONDS = 600  # of a server, with the transfer of the pack
RETRIES = 1  # of a row whose worker was lost


class Cluster:
    """Workers of a Ray: one for each GPU, or for a share of the cores if there is no GPU."""

    def __init__(self, address: str, cores: int | None) -> None:
        self._address, self._cores = address, cores
        self._workers: dict[ActorHandle, str] = {}
        self._needs: Sequence[Need] = ()
        self._questions: dict[ray.ObjectRef, ActorHandle] = {}
        self._answered: dict[ActorHandle, float] = {}
        self._asked = 0.0

    def __enter__(self) -> Cluster:
        connect(self._address)
        try:
            self._start()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def _start(self) -> None:
        count, gpus, cores = shares(self._cores)
        of_each = "a GPU" if gpus else f"{cores} core{'s' * (cores != 1)}"
        say(f"Ray: starting {count} worker{'s' * (count != 1)} with {of_each} each, and a ComfyUI in each of them")
        settings = {"num_gpus": gpus, "num_cpus": cores, "max_restarts": -1, "max_task_retries": RETRIES}
        create = Worker.options(**settings, scheduling_strategy="SPREAD").remote
        workers = [create(number, cores) for number in range(1, count + 1)]
        names = _get([worker.name.remote() for worker in workers])
        self._workers = dict(zip(workers, names, strict=True))
        self._answered = dict.fromkeys(workers, time.monotonic())

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    @property
    def alive(self) -> int:
        """How many of them have answered of late."""
        self._ask()
        return sum(time.monotonic() - last < SILENT for last in self._answered.values())

    def _ask(self) -> None:
        """Reads what has been answered, and asks again after a while."""
        ready = (
            ray.wait(list(self._questions), num_returns=len(self._questions), timeout=0)[0] if self._questions else []
        )
        for question in ready:
            worker = self._questions.pop(question)
            try:
                ray.get(question)
                self._answered[worker] = time.monotonic()
            except RayError:
                pass  # it is being started again, or is lost
        if time.monotonic() - self._asked > ASKED_EVERY:
            self._asked = time.monotonic()
            waiting = set(self._questions.values())
            self._questions |= {each.answer.remote(): each for each in self._workers if each not in waiting}

    def object_info(self) -> dict[str, Json]:
        """The nodes of the first worker. All servers start at the same time."""
        return _get([worker.object_info.remote() for worker in self._workers][:1])[0]

    def missing(self, needs: Sequence[Need]) -> dict[str, list[str]]:
        """What each worker lacks, by its name."""
        self._needs = needs
        found = _get([worker.missing.remote(needs) for worker in self._workers])
        return dict(zip(self._workers.values(), found, strict=True))

    def run(self, rows: Sequence[Row]) -> Iterator[Outcome | None]:
        """The outcomes as they come, and None after a second without any. A row that its worker lost has an error."""
        needs = ray.put(self._needs)
        pool = ActorPool(self._present())
        waiting = iter(rows)
        taken: dict[str, ActorHandle] = {}  # by the row that runs there

        def start(worker: ActorHandle, row: Row) -> ray.ObjectRef:
            taken[row.key] = worker
            return worker.run.remote(row.key, row.graph, needs)

        while True:
            while pool.has_free() and (row := next(waiting, None)):
                pool.submit(start, row)
            if not pool.has_next() or self._are_gone(taken.values()):
                break
            try:
                outcome = pool.get_next_unordered(timeout=TICK)
                del taken[outcome.key]
                yield outcome
            except TimeoutError:
                yield None
            except RayActorError as error:
                if isinstance(error, ActorDiedError):
                    self._drop(pool.pop_idle(), "it was lost for good")
            except RayTaskError as error:
                self._drop(pool.pop_idle(), str(error.cause))
        yield from (
            Outcome(key, self._workers.get(worker, "a worker"), error="its worker was lost while it ran")
            for key, worker in taken.items()
        )

    def _present(self) -> list[ActorHandle]:
        """The workers that are not gone."""
        return [worker for worker in self._workers if not self._are_gone([worker])]

    def _are_gone(self, workers: Sequence[ActorHandle]) -> bool:
        """Whether none of them has answered for so long that its machine has left."""
        now = time.monotonic()
        return bool(workers) and all(now - self._answered.get(worker, -GONE) >= GONE for worker in workers)

    def _drop(self, worker: ActorHandle | None, reason: str) -> None:
        """Gives no more rows to a worker, the one that has just come back to the pool."""
        if worker is not None:
            say(f"{self._workers.pop(worker, 'a worker')} takes no more prompts: {reason}")
            self._answered.pop(worker, None)


def connect(address: str) -> None:
    """Joins the cluster at an address, or starts a Ray on this machine alone. Raises SweepError if that fails."""
    pack = {"working_dir": str(ROOT), "excludes": list(LEFT_OUT), "worker_process_setup_hook": "demo.inside.load_pack"}
    quiet = {"log_to_driver": False, "logging_level": "error"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address == LOCAL:
            ray.init(address="local", include_dashboard=False, runtime_env=pack, **quiet)
        else:
            ray.init(address=address, runtime_env=pack, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise SweepError(
            f"Ray does not answer at {address}: {error}. `python3 dev.py ray start --head` starts a cluster; on the "
            "same machine its address is auto"
        ) from error


def shares(cores: int | None) -> tuple[int, int, int]:
    """How many workers there is room for, and the GPUs and cores of each. Raises SweepError if there is no room."""
    free = ray.available_resources()
    if gpus := int(free.get("GPU", 0)):
        return gpus, 1, 1
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = cores or max(1, min(filter(None, machines), default=1) // 2)
    count = sum(machine // each for machine in machines)
    if not count or free.get("CPU", 0) < each:
        raise SweepError(f"no machine has {each} free cores for a worker: {free.get('CPU', 0):g} are free in all")
    return min(count, int(free["CPU"] // each)), 0, each


def _get(futures: list[ray.ObjectRef]) -> list[Json]:
    """What workers answer before the first prompt. Raises SweepError if one cannot, or takes too long."""
    try:
        return ray.get(futures, timeout=START_SECONDS)
    except GetTimeoutError as error:
        raise SweepError(
            f"not every worker has started within {START_SECONDS} s: others may use the cluster"
        ) from error
    except RayTaskError as error:
        raise SweepError(str(error.cause)) from error
    except RayError as error:
        raise SweepError(f"Ray could not start a worker: {error}") from error
