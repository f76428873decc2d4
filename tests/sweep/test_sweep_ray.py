"""Rows on a real Ray whose workers have no server: lost workers, lost rows, workers that can do nothing."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest

ray = pytest.importorskip("ray", reason="needs Ray: python3 dev.py ray --version installs it")
pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")

from reins.sweep import cluster, presence  # noqa: E402
from reins.sweep.cluster import LOST, Cluster  # noqa: E402
from reins.sweep.drive import Drive  # noqa: E402
from reins.sweep.errors import SweepError  # noqa: E402
from reins.sweep.plan import make_plan, read_axes  # noqa: E402
from reins.sweep.records import Records  # noqa: E402
from reins.tests.helpers.sweeps import INFO, small_graph  # noqa: E402

ONCE, ALWAYS, UNFIT, LEAVES = "once", "always", "unfit", "leaves"  # what the text of a row makes its worker do


def stand_in(folder: str):
    """A worker without a server. The class is made here, for Ray then sends it as it is."""

    @ray.remote(concurrency_groups={"asking": 1})
    class Worker:
        def __init__(self, number, cores):
            self._name = f"worker {number}"
            if os.path.exists(f"{folder}/left"):
                os.kill(os.getpid(), signal.SIGSTOP)

        def name(self):
            return self._name

        def object_info(self):
            return INFO

        def missing(self, needs):
            return ["no file"] if os.path.exists(f"{folder}/lacks") else []

        def run(self, key, graph, needs):
            from reins.sweep.outcome import Outcome

            text, mark = graph["11"]["inputs"]["text"], f"{folder}/{key}"
            with open(mark, "a", encoding="utf-8") as file:
                file.write("x")
            tries = os.path.getsize(mark)
            if text == "always" or (text == "once" and tries == 1):
                os._exit(1)
            if text == "leaves" and tries < 3:
                if tries == 2:
                    open(f"{folder}/left", "w").close()
                os._exit(1)
            if text == "unfit" and tries == 1:
                raise ValueError("this worker can do nothing")
            time.sleep(0.05)
            return Outcome(key, self._name, 0.1)

        def end(self):
            pass

        @ray.method(concurrency_group="asking", max_task_retries=0)
        def answer(self):
            pass

    return Worker


@pytest.fixture(scope="module")
def a_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster.connect(cluster.LOCAL)
        yield
        ray.shutdown()


@pytest.fixture
def engine(a_ray, tmp_path, monkeypatch):
    """Two workers on it."""
    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "shares", lambda cores: (2, 0, 0))
    monkeypatch.setattr(cluster, "Worker", stand_in(str(tmp_path)))
    monkeypatch.setattr(presence, "ASKED_EVERY", 0.2)
    with Cluster(cluster.LOCAL, 1) as found:
        yield found
        for worker in found._workers:
            ray.kill(worker)


def drive(engine, tmp_path, *texts: str) -> tuple[dict[str, list[str]], Drive]:
    """The errors of the rows by their text; each text has four rows."""
    graph = small_graph()
    plan = make_plan(graph, read_axes(graph, [f"Positive.text={','.join(texts)}", "KSampler.seed=0:4"]), INFO)
    records = Records(tmp_path / "out", plan)
    run = Drive(plan, records, lambda: None)
    assert engine.missing([]) == {"worker 1": [], "worker 2": []}
    run.run(engine, lambda text: None)
    found: dict[str, list[str]] = {}
    for row in plan.rows:
        if row.key in records.by_key:
            found.setdefault(row.values[0], []).append(records.by_key[row.key].error)
    drive.workers = Counter(record.worker for record in records.by_key.values())
    return found, run


def test_both_workers_take_rows_and_each_row_has_one_outcome(engine, tmp_path):
    found, _ = drive(engine, tmp_path, "a", "b", "c", "d")
    assert found == {text: [""] * 4 for text in "abcd"}
    assert set(drive.workers) == {"worker 1", "worker 2"}
    assert all(os.path.getsize(path) == 1 for path in tmp_path.iterdir() if path.is_file())
    assert (engine.alive, engine.size) == (2, 2)


def test_ray_starts_a_lost_worker_again_and_gives_it_its_row_again(engine, tmp_path):
    found, _ = drive(engine, tmp_path, "a", ONCE, "b")
    assert found == {text: [""] * 4 for text in ("a", ONCE, "b")}


@pytest.mark.skipif(not os.environ.get("REINS_FULL"), reason="starts many workers again; --full runs it")
def test_a_row_that_ends_every_worker_is_an_error_and_costs_no_other_row(engine, tmp_path):
    found, _ = drive(engine, tmp_path, "a", ALWAYS, "b")
    assert found == {"a": [""] * 4, ALWAYS: [LOST] * 4, "b": [""] * 4}


def test_a_worker_that_can_do_nothing_takes_no_more_rows(engine, tmp_path, capsys):
    drive(engine, tmp_path, "a", "b")
    graph = small_graph()
    plan = make_plan(graph, read_axes(graph, ["Positive.text=unfit", "KSampler.seed=9"]), INFO)
    records = Records(tmp_path / "out", plan)
    Drive(plan, records, lambda: None).run(engine, lambda text: None)
    assert [record.error for record in records.by_key.values()] == [""]  # the other worker had it
    assert "takes no more prompts: this worker can do nothing" in capsys.readouterr().out
    assert (len(engine._workers), engine.size) == (1, 2)


def test_the_row_of_a_worker_that_does_not_come_back_goes_to_another(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "GONE", 4)
    drive(engine, tmp_path, "a", "b")
    graph = small_graph()
    plan = make_plan(graph, read_axes(graph, ["Positive.text=leaves,c,d,e", "KSampler.seed=9"]), INFO)
    records = Records(tmp_path / "out", plan)
    Drive(plan, records, lambda: None).run(engine, lambda text: None)
    assert [record.error for record in records.by_key.values()] == [""] * 4


def test_rows_are_left_if_every_worker_is_unfit(engine, tmp_path):
    _, run = drive(engine, tmp_path, UNFIT)
    assert len(run.unfinished()) == 4
    assert run.failed() == []


def test_what_a_worker_lacks_is_told_by_its_name(engine, tmp_path):
    (tmp_path / "lacks").touch()
    assert engine.missing([]) == {"worker 1": ["no file"], "worker 2": ["no file"]}


def test_no_room_for_a_worker_and_no_cluster_are_said(a_ray, monkeypatch):
    with pytest.raises(SweepError, match=r"no machine has 9999 free cores for a worker: \d+ are free in all"):
        cluster.shares(9999)
    monkeypatch.setattr(cluster.ray, "init", lambda **settings: (_ for _ in ()).throw(ConnectionError("nobody")))
    with pytest.raises(SweepError, match="Ray does not answer at first:6379: nobody"):
        cluster.connect("first:6379")


@pytest.mark.parametrize(
    ("machines", "cores", "expected"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1}], None, (3, 1, 1)),
        ([{"CPU": 8}, {"CPU": 4}], None, (6, 0, 2)),
        ([{"CPU": 1}], None, (1, 0, 1)),
        ([{"CPU": 8}, {"CPU": 4}], 4, (3, 0, 4)),
    ],
)
def test_each_gpu_is_a_worker_else_each_share_of_cores(machines, cores, expected, monkeypatch):
    free = Counter()
    for machine in machines:
        free.update(machine)
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: free)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": each} for each in machines])
    assert cluster.shares(cores) == expected
