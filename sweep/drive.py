"""Gives the rows to an engine until each has its pictures, or has failed twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..demo.client import Json
    from .needs import Need
    from .outcome import Outcome
    from .plan import Plan, Row
    from .records import Records

TRIES = 2
SECONDS_BETWEEN_REPORTS = 10


class Engine(Protocol):
    """What runs prompts. It is entered before it is asked anything, and ends what it started when it is left."""

    @property
    def size(self) -> int:
        """How many workers there are."""
        ...

    @property
    def alive(self) -> int:
        """How many of them are there at the moment."""
        ...

    def object_info(self) -> dict[str, Json]:
        """The nodes that one of the workers knows."""
        ...

    def missing(self, needs: Sequence[Need]) -> dict[str, list[str]]:
        """What each worker lacks, by its name."""
        ...

    def run(self, rows: Sequence[Row]) -> Iterator[Outcome | None]:
        """The outcomes as they come, and None if nothing came for a while."""
        ...


class Drive:
    """One run of a sweep: what is left, and how fast it goes."""

    def __init__(self, plan: Plan, records: Records, report: Callable[[], None]) -> None:
        self._plan, self._records, self._report = plan, records, report
        self._left = {row.key: row for row in plan.rows if not records.is_done(row)}
        self._before = len(plan.rows) - len(self._left)
        self._pictures = 0
        self._start = self._reported = time.monotonic()

    def run(self, engine: Engine, show: Callable[[str], None]) -> None:
        """Runs what is left. A row that failed waits until the others have had their turn."""
        failures: Counter[str] = Counter()
        self._start = self._reported = time.monotonic()
        while self._left:
            came = 0
            for outcome in engine.run(list(self._left.values())):
                if outcome is not None and outcome.key in self._left:
                    came += 1
                    failures[outcome.key] += bool(outcome.error)
                    if not outcome.error or failures[outcome.key] == TRIES:
                        self._keep(self._left.pop(outcome.key), outcome)
                show(self.progress(engine))
            if not came:
                return

    def _keep(self, row: Row, outcome: Outcome) -> None:
        self._records.write(row, outcome)
        self._pictures += len(outcome.files)
        if time.monotonic() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._report()
            self._reported = time.monotonic()

    def progress(self, engine: Engine) -> str:
        """Where the sweep is, in one line."""
        every, left = len(self._plan.rows), len(self._left)
        minutes = (time.monotonic() - self._start) / 60
        ran = every - left - self._before
        rest = "" if not ran else f", {duration(left * minutes * 60 / ran)} left"
        speed = f"{self._pictures / minutes:.1f} pictures per minute" if minutes else ""
        return f"{every - left} of {every} prompts, {speed}{rest}, {engine.alive} of {engine.size} workers"

    def failed(self) -> list[Row]:
        """The rows that ended with an error."""
        return [row for row in self._plan.rows if row.key in self._records.by_key and not self._records.is_done(row)]

    def unfinished(self) -> list[Row]:
        """The rows that nobody has run to an end."""
        return [row for row in self._plan.rows if row.key not in self._records.by_key]


def duration(seconds: float) -> str:
    """A time in words of one unit, or of two if it is long."""
    minutes = round(seconds) // 60
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
