"""The plan of `dev.py test`, and what its end says."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reins.tests.tools.places import ROOT
from reins.tools import children as testing_children
from reins.tools import hosts, testing
from reins.tools.screen import DevError


def options(*arguments: str, full: bool = False) -> argparse.Namespace:
    return argparse.Namespace(full=full, rest=list(arguments), hosts=False, require_host=False)


def some_hosts() -> list[hosts.Host]:
    return [hosts.Host(Path(f"/c/{minor}"), (0, minor), "cached") for minor in (30, 16, 3)]


def test_the_newest_host_has_three_processes_and_each_older_one_a_share(cache):
    jobs = testing.plan(some_hosts(), options())
    assert [job.environment["COMFYUI_PATH"] for job in jobs] == ["/c/30", "/c/30", "/c/30", "/c/3", "/c/16"]
    assert [job.environment.get("REINS_BRIEF") for job in jobs] == [None, None, None, "1/4", "0/4"]
    assert all(job.environment["REINS_COVERING"] == "1" for job in jobs[:3])
    assert [job.arguments[1] for job in jobs[:3]] == [
        "not (slow or server or browser)", "server or browser", "slow and not (server or browser)",
    ]  # fmt: skip


def test_a_selection_by_hand_is_one_process_for_each_host_and_leaves_nothing_out(cache):
    jobs = testing.plan(some_hosts(), options("-k", "seg"))
    assert [job.arguments[-2:] for job in jobs] == [["-k", "seg"]] * 3
    assert [job.environment.get("REINS_BRIEF") for job in jobs] == [None, "all", "all"]
    assert "REINS_COVERING" not in jobs[0].environment


def test_without_a_host_the_formulas_are_tested(cache, monkeypatch, capsys):
    monkeypatch.setattr(testing, "find_hosts", lambda: (_ for _ in ()).throw(DevError("there is no network")))
    assert testing.hosts_to_test(options()) == []
    assert "there is no network" in capsys.readouterr().out
    (job,) = testing.plan([], options())
    assert job.arguments == ["-m", "not host and not (server or browser)"]
    required = options()
    required.require_host = True
    with pytest.raises(DevError):
        testing.hosts_to_test(required)


def test_marks_of_ones_own_join_those_of_the_plan(cache):
    jobs = testing.plan(some_hosts(), options("-m", "not slow", "-x"))
    assert jobs[0].arguments == ["-m", "not slow", "-x"]
    assert jobs[1].arguments == ["-m", "(host and not (server or browser)) and (not slow)", "-x"]


def a_run(code: int) -> testing.TestRun:
    return testing.TestRun("a host", code, 1.0, "2 passed in 1.00s", b"")


@pytest.mark.parametrize(
    ("codes", "by_hand", "result"),
    [
        ((0, 0), False, 0),
        ((0, 1), False, 1),
        ((0, 5), False, 1),
        ((0, 5), True, 0),
        ((5, 5), True, 1),
        ((0, 2), True, 1),
    ],
)
def test_one_failed_process_fails_the_whole(codes, by_hand, result, capsys):
    chosen = options(*(["-k", "seg"] if by_hand else []))
    assert testing.sum_up([a_run(code) for code in codes], True, chosen) == result
    assert capsys.readouterr().out.count("a host: 2 passed") == len(codes)


def test_without_a_host_a_required_one_fails_the_whole(capsys):
    chosen = options()
    assert testing.sum_up([a_run(0)], False, chosen) == 0
    chosen.require_host = True
    assert testing.sum_up([a_run(0)], False, chosen) == 1


def test_every_process_runs_and_its_code_and_summary_come_back(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(testing, "venv_python", lambda: Path(sys.executable))
    (tmp_path / "test_one.py").write_text("def test_fails():\n    assert False\n")
    arguments = ["-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path)]
    run = testing.run_pytest(testing.Job("a host", arguments, testing.child_environment()), show=False)
    assert run.code == 1
    assert run.summary.startswith("1 failed in ")
    assert b"assert False" in run.output
    assert "assert False" not in capfd.readouterr().out


def test_all_jobs_run_and_the_command_fails_if_one_does(cache, monkeypatch, capsys):
    ran = []

    def run(job, show):
        ran.append((job.label, show))
        return a_run(int("numbers" in job.label))

    monkeypatch.setattr(testing, "find_hosts", some_hosts)
    monkeypatch.setattr(testing, "set_up", lambda hosts: None)
    monkeypatch.setattr(testing, "run_pytest", run)
    assert testing.command_test(options()) == 1
    assert sorted(show for _, show in ran) == [False] * 4 + [True]
    assert len({label for label, _ in ran}) == 5


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_reaches_the_child_and_the_command_ends(name, code, tmp_path):
    """With SIGINT as a terminal sends it: to the whole group."""
    child = f"""
import pathlib, time
try:
    pathlib.Path({str(tmp_path / "started")!r}).touch(); time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path / "ended")!r}).touch()
"""
    parent = f"""
import signal, sys
from tools import children
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs have it ignored
signal.signal(signal.SIGTERM, children.end_children)
sys.exit(children.run_child([sys.executable, "-c", {child!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, start_new_session=True)
    with process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.02)
        number = getattr(signal, name)
        os.killpg(process.pid, number) if name == "SIGINT" else process.send_signal(number)
        assert process.wait(20) == code
    assert (tmp_path / "ended").exists()


def test_a_child_gives_its_exit_code():
    assert testing_children.run_child([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_a_child_reaches_no_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert testing_children.child_environment(A="b").items() >= {"HF_HUB_OFFLINE": "1", "A": "b"}.items()


def test_with_hosts_those_of_the_registry_are_asked_for(monkeypatch):
    monkeypatch.setattr(testing, "find_test_hosts", some_hosts)
    monkeypatch.setattr(testing, "find_hosts", list)
    chosen = options()
    chosen.hosts = True
    assert testing.hosts_to_test(chosen) == some_hosts()
    chosen.hosts = False
    assert testing.hosts_to_test(chosen) == []


def test_the_last_summary_counts_and_colours_are_left_out():
    said = "== 1 failed in 0.10s ==\n(of a test)\n\x1b[32m===== 7 passed, 2 skipped in 1.52s (0:01) =====\x1b[0m\n"
    assert testing.pytest_summary(said) == "7 passed, 2 skipped in 1.52s (0:01)"
    assert testing.pytest_summary("nothing") == "pytest gave no summary"
