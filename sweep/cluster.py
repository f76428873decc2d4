"""The engine for Ray: workers on this machine, or on all machines of a cluster.

Ray starts the workers and starts them again, gives a row that a worker lost to that worker once more, and brings the
pictures here. What is left after that is left to the drive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError
from ray.util import ActorPool

from ..demo.host import ROOT
from ..tools.screen import say
from ..tools.sweeping import LOCAL
from .errors import SweepError
from .needs import Need
from .outcome import Outcome
from .presence import SILENT, Presence
from .worker import Worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from ..demo.client import Json
    from .plan import Row

LEFT_OUT = (
    "/tests/", "/bench/", "/docs/", "/findings/", "/example_workflows/", "/subgraphs/", "/output/", ".git",
)  # fmt: skip
TICK = 1  # seconds
START_SECONDS = 600  # of a server, with the transfer of the pack
END_SECONDS = 20  # for workers to end their servers
RETRIES = 1  # of a row whose worker was lost
LOST = "its worker was lost while it ran"


class Cluster:
    """Workers of a Ray: one for each GPU, or for a share of the cores if there is no GPU."""

    def __init__(self, address: str, cores: int | None) -> None:
        self._address, self._cores = address, cores
        self._workers: dict[ActorHandle, str] = {}
        self._size = 0
        self._needs: Sequence[Need] = ()
        self._presence = Presence([])
        self._absent: dict[ActorHandle, float] = {}  # workers that lost their row, and when

    def __enter__(self) -> Cluster:
        connect(self._address)
        try:
            self._start()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        present = [worker for worker in self._workers if self._presence.silence(worker) < SILENT]
        try:
            ray.wait([worker.end.remote() for worker in present], num_returns=max(1, len(present)), timeout=END_SECONDS)
        except (RayError, ValueError):
            pass  # what is left there goes when the next sweep starts
        finally:
            ray.shutdown()

    def _start(self) -> None:
        count, gpus, cores = shares(self._cores)
        of_each = "a GPU" if gpus else f"{cores} core{'s' * (cores != 1)}"
        say(f"Ray: starting {count} worker{'s' * (count != 1)} with {of_each} each, and a ComfyUI in each of them")
        settings = {"num_gpus": gpus, "num_cpus": cores, "max_restarts": -1, "max_task_retries": RETRIES}
        create = Worker.options(**settings, scheduling_strategy="SPREAD").remote
        workers = [create(number, cores) for number in range(1, count + 1)]
        names = _get([worker.name.remote() for worker in workers])
        self._workers, self._size = dict(zip(workers, names, strict=True)), count
        self._presence = Presence(workers)

    @property
    def size(self) -> int:
        """How many workers there were at the start."""
        return self._size

    @property
    def alive(self) -> int:
        """How many of them answer."""
        return self._presence.count()

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
        yield from _Round(self._workers, self._absent, self._presence, ray.put(self._needs), self._drop).run(rows)

    def _drop(self, worker: ActorHandle, reason: str) -> None:
        """Gives no more rows to a worker."""
        say(f"{self._workers.pop(worker)} takes no more prompts: {reason}")
        self._presence.forget(worker)


class _Round:
    """Rows and workers until every row has ended, or until no worker is left to take one."""

    def __init__(
        self,
        workers: Iterable[ActorHandle],
        absent: dict[ActorHandle, float],
        presence: Presence,
        needs: ray.ObjectRef,
        drop: Callable[[ActorHandle, str], None],
    ) -> None:
        self._pool = ActorPool([worker for worker in workers if worker not in absent])
        self._absent = absent
        self._presence, self._needs, self._drop = presence, needs, drop
        self._taken: dict[str, ActorHandle] = {}  # by the row that runs there

    def run(self, rows: Sequence[Row]) -> Iterator[Outcome | None]:
        waiting = list(reversed(rows))
        while True:
            self._readmit()
            while waiting and self._pool.has_free():
                self._pool.submit(self._start, waiting.pop())
            busy = self._taken.values() if self._pool.has_next() else self._absent if waiting else ()
            if not busy or self._presence.are_gone(busy):
                break
            if self._pool.has_next():
                yield from self._next()
            else:
                time.sleep(TICK)
                yield None
        for key, worker in self._taken.items():
            self._absent[worker] = time.monotonic()
            yield Outcome(key, "", error=LOST)

    def _start(self, worker: ActorHandle, row: Row) -> ray.ObjectRef:
        self._taken[row.key] = worker
        return worker.run.remote(row.key, row.graph, self._needs)

    def _next(self) -> Iterator[Outcome | None]:
        """The next outcome, None after a second without any, or an error if the worker that has come back lost its row.

        A worker that comes back stands last among the idle ones.
        """
        try:
            outcome = self._pool.get_next_unordered(timeout=TICK)
        except TimeoutError:
            yield None
        except ActorDiedError:
            yield self._lose("it was lost for good")
        except RayTaskError as error:
            yield self._lose(str(error.cause))
        except RayError:
            yield self._lose()
        else:
            del self._taken[outcome.key]
            yield outcome

    def _lose(self, reason: str = "") -> Outcome:
        """Takes the worker that has come back out of the pool, for good if there is a reason."""
        worker = self._pool.pop_idle()
        (key,) = (key for key, each in self._taken.items() if each is worker)
        del self._taken[key]
        if reason:
            self._drop(worker, reason)
        else:
            self._absent[worker] = time.monotonic()
        return Outcome(key, "", error=LOST)

    def _readmit(self) -> None:
        """Puts workers back that answer again. One that is being started would lose row after row."""
        for worker in [each for each, since in self._absent.items() if self._presence.has_answered(each, since)]:
            del self._absent[worker]
            self._pool.push(worker)


def connect(address: str) -> None:
    """Joins the cluster at an address, or starts a Ray on this machine alone. Raises SweepError if that fails."""
    pack = {"working_dir": str(ROOT), "excludes": list(LEFT_OUT), "worker_process_setup_hook": "demo.inside.load_pack"}
    quiet = {"log_to_driver": False, "logging_level": "error"}
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
