"""Several servers: each has the next row as it becomes free, and one that is lost leaves its rows to the others."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo.host import HostDied
from reins.sweep.errors import SweepError
from reins.sweep.graph import leading_to
from reins.sweep.outcome import Outcome
from reins.sweep.plan import make_plan, read_axes
from reins.sweep.prompt import WorkerLost, brief
from reins.sweep.servers import Servers
from reins.tests.helpers.sweeps import INFO, small_graph


class Server:
    """One that needs `seconds` for a row, and is lost after `rows` of them; `comes_back` once it is started again."""

    def __init__(self, name: str, seconds: float = 0.0, rows: int = 10**6, comes_back: bool = False) -> None:
        self.name, self._seconds, self._rows, self._comes_back = name, seconds, rows, comes_back
        self.is_alive, self.ran, self.started, self.ended = False, [], 0, False

    def start(self):
        if self.started and not self.is_alive and not self._comes_back:
            raise HostDied(f"{self.name} does not start")
        self.started += not self.is_alive
        self.is_alive = True
        return self

    def object_info(self):
        return {**INFO, "Loader": {"input": {"required": {"name": [[self.name], {}]}}}}

    def run(self, key, graph):
        time.sleep(self._seconds)
        self.ran.append(key)
        if len(self.ran) == self._rows:
            self.is_alive = False
            raise WorkerLost(f"{self.name} was lost")
        return Outcome(key, self.name)

    def end(self):
        self.ended = True


def rows(count: int):
    graph = small_graph()
    return make_plan(graph, read_axes(graph, [f"KSampler.seed=0:{count}"]), INFO).rows


def outcomes(servers: Servers, count: int) -> list[Outcome]:
    return [outcome for outcome in servers.run(rows(count)) if outcome is not None]


def test_a_fast_server_has_more_rows_than_a_slow_one_and_each_row_runs_once():
    fast, slow = Server("fast", 0.01), Server("slow", 0.1)
    with Servers([fast, slow]) as servers:
        found = outcomes(servers, 30)
    assert sorted(each.key for each in found) == sorted(row.key for row in rows(30))
    assert len(fast.ran) > 2 * len(slow.ran) > 0
    assert fast.ended and slow.ended


def test_a_lost_server_gives_up_its_row_and_the_others_take_the_rest():
    steady, lost = Server("steady", 0.01), Server("lost", 0.01, rows=2)
    with Servers([steady, lost]) as servers:
        found = outcomes(servers, 20)
        assert (servers.alive, servers.size) == (1, 2)
    assert [each.error for each in found if each.error] == ["lost was lost"]
    assert len({each.key for each in found}) == 20


def test_a_server_of_our_own_is_started_again():
    server = Server("own", rows=3, comes_back=True)
    with Servers([server]) as servers:
        found = outcomes(servers, 8)
    assert server.started == 2
    assert [bool(each.error) for each in found] == [False, False, True, False, False, False, False, False]


def test_rows_are_left_if_no_server_is():
    with Servers([Server("lost", rows=3)]) as servers:
        assert len(outcomes(servers, 8)) == 3


def test_a_server_that_does_not_start_ends_the_others_and_is_named():
    started, dead = Server("started"), Server("dead")
    dead.started = 1
    with pytest.raises(SweepError, match="no ComfyUI answers at dead: dead does not start"), Servers([started, dead]):
        pass
    assert started.ended


def test_each_server_is_asked_what_it_lacks():
    from reins.sweep.needs import Need

    with Servers([Server("one"), Server("two")]) as servers:
        lacks = servers.missing([Need("Loader"), Need("Loader", "name", "one")])
    assert lacks == {"one": [], "two": ["no one for Loader.name; there are two"]}


def test_a_second_without_an_outcome_is_a_tick():
    with Servers([Server("slow", 1.5)]) as servers:
        assert [outcome is None for outcome in servers.run(rows(1))] == [True, False]
    assert threading.active_count() < 20


def test_a_long_error_keeps_its_beginning_and_its_end():
    assert brief("short") == "short"
    text = brief("b" * 1000 + "e" * 1000)
    assert text.startswith("bbb") and text.endswith("eee") and len(text) < 1000


def test_only_what_leads_to_a_node_is_kept():
    assert sorted(leading_to(small_graph(), "3")) == ["10", "3", "4"]
