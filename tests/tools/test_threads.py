"""How many threads a server gets."""

from __future__ import annotations

import pytest
from reins.tools import threads as tool_threads


@pytest.mark.parametrize(
    ("machine", "usable", "load", "quota", "threads"),
    [
        (16, 16, 0.2, None, 16), (16, 16, 3.6, None, 12), (16, 16, 40.0, None, 8),  # half, for a load may end
        (2, 2, 2.4, None, 1), (2, 2, 9.0, None, 1), (1, 1, 0.0, None, 1),
        (16, 16, 0.0, "max 100000", 16), (16, 16, 0.0, "400000 100000", 4), (16, 16, 0.0, "50000 100000", 1),
        (64, 64, 30.0, "1600000 100000", 16), (64, 4, 12.0, None, 4),  # others' load is on other cores
        (4, 4, 0.0, "", 4),
    ],
)  # fmt: skip
def test_a_server_gets_the_cores_that_are_idle(machine, usable, load, quota, threads, tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    monkeypatch.setattr(tool_threads, "QUOTA", file)
    monkeypatch.setattr(tool_threads.os, "cpu_count", lambda: machine)
    monkeypatch.setattr(tool_threads.os, "sched_getaffinity", lambda process: set(range(usable)), raising=False)
    monkeypatch.setattr(tool_threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert tool_threads.for_a_server()["OMP_NUM_THREADS"] == str(threads)


def test_a_system_that_does_not_tell_its_load_counts_as_idle(monkeypatch):
    def fail():
        raise OSError

    monkeypatch.setattr(tool_threads.os, "getloadavg", fail, raising=False)
    assert tool_threads.load() == 0


def test_threads_that_a_person_has_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    chosen = tool_threads.for_a_server()
    assert "OMP_NUM_THREADS" not in chosen
    assert chosen["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_allocators_settings_of_a_person_stay_for_every_command(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert set(tool_threads.keep_memory()) == {"MALLOC_MMAP_THRESHOLD_"}


def test_a_server_keeps_its_memory_and_its_threads_sleep(monkeypatch):
    for name in (*tool_threads.KEEP_MEMORY, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    chosen = tool_threads.for_a_server()
    assert chosen.items() >= {**tool_threads.KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE"}.items()
