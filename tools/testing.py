"""`dev.py test`: one pytest process per host, three for the newest, two at a time."""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .children import ROOT, child_environment, start_child
from .environment import set_up
from .hosts import Host, find_hosts, find_test_hosts
from .screen import DevError, say
from .venv import venv_python

PYTEST_NOTHING_COLLECTED = 5


class Job(NamedTuple):
    """What one pytest process is to do."""

    label: str
    arguments: list[str]
    environment: dict[str, str]


class TestRun(NamedTuple):
    """One pytest process: `output` is empty where it was shown as it came."""

    label: str
    code: int
    seconds: float
    summary: str
    output: bytes


def run_pytest(job: Job, show: bool) -> TestRun:
    """Runs pytest to its end; its output is passed on at once, or kept to be shown in one piece."""
    start, output = time.monotonic(), bytearray()
    command = [str(venv_python()), "-m", "pytest", "--durations=10", "-rfEs", *job.arguments]
    if sys.stdout.isatty():
        command.append("--color=yes")
    with start_child(command, job.environment, captured=True) as child:
        assert child.stdout is not None
        while chunk := child.stdout.read1(65536):
            output += chunk
            if show:
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
    kept = b"" if show else bytes(output)
    summary = pytest_summary(output.decode("utf-8", "replace"))
    return TestRun(job.label, child.returncode, time.monotonic() - start, summary, kept)


def pytest_summary(output: str) -> str:
    """Pytest's own closing line; interpreters may have written more after it."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    found = re.findall(r"^=*[ \t]*(.*? in \d[\d.]*s\b.*?)[ \t]*=*$", plain, re.MULTILINE)
    return found[-1] if found else "pytest gave no summary"


def command_test(options: argparse.Namespace) -> int:
    """Runs two processes at a time: the first is shown as it runs, what ran beside and after it at the end."""
    need_checkout("tests")
    hosts = hosts_to_test(options)
    set_up(hosts)
    jobs = plan(hosts, options)
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        say(f"tests: {jobs[0].label}" + (f"; shown afterwards: {len(jobs) - 1} more" if len(jobs) > 1 else ""))
        started = [pool.submit(run_pytest, job, show=place == 0) for place, job in enumerate(jobs)]
        runs = [started[0].result()]
        for job in started[1:]:
            runs.append(job.result())
            say(f"tests: {runs[-1].label}")
            sys.stdout.buffer.write(runs[-1].output)
            sys.stdout.flush()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the next one shall not begin
    return sum_up(runs, bool(hosts), options)


def need_checkout(folder: str) -> None:
    """Raises DevError in a pack that was installed by a manager: what only a checkout needs is not shipped."""
    if not (ROOT / folder).is_dir():
        raise DevError(f"an installed pack has no folder {folder}: clone its repository, and run this command there")


def hosts_to_test(options: argparse.Namespace) -> list[Host]:
    """The hosts, newest first; none if none can be had, for the formulas have tests that need none.

    Raises DevError if hosts were asked for.
    """
    try:
        return find_test_hosts() if options.hosts else find_hosts()
    except DevError as error:
        if options.hosts or options.require_host:
            raise
        say(str(error))
        return []


def plan(hosts: list[Host], options: argparse.Namespace) -> list[Job]:
    """What takes longest on the newest host, server and browser, and measured pictures, are processes of their own."""
    environment = child_environment(OMP_NUM_THREADS="1", **({"REINS_FULL": "1"} if options.full else {}))
    by_hand = bool(options.rest)  # a selection by hand stays in one process
    server = "server or browser"
    if not hosts:
        environment.pop("COMFYUI_PATH", None)
        arguments = with_marks(f"not host and not ({server})", options.rest)
        return [Job("without a host", arguments, environment)]
    first, *others = hosts
    newest = {**environment, "COMFYUI_PATH": str(first.path)}
    if by_hand:
        jobs = [Job(str(first), options.rest, newest)]
    else:
        newest |= {} if options.full else {"REINS_COVERING": "1"}
        jobs = [
            Job(str(first), ["-m", f"not (slow or {server})"], newest),
            Job(f"{first}: server, browser", ["-m", server], newest),
            Job(f"{first}: numbers", ["-m", f"slow and not ({server})"], newest),
        ]
    older = with_marks(f"host and not ({server})", options.rest)
    for place, host in reversed(list(enumerate(others))):  # what takes longer first
        share = "all" if options.full or by_hand else f"{place}/{2 * len(others)}"  # the other half is for --full
        of_host = {**environment, "COMFYUI_PATH": str(host.path), "REINS_BRIEF": share}
        jobs.append(Job(str(host), older, of_host))
    return jobs


def with_marks(marks: str, rest: list[str]) -> list[str]:
    """Pytest's arguments with a choice of marks, and with that of the person at the keyboard if there is one.

    Of two -m pytest would take the last alone.
    """
    if "-m" in rest[:-1]:
        place = rest.index("-m")
        return ["-m", f"({marks}) and ({rest[place + 1]})", *rest[:place], *rest[place + 2 :]]
    return ["-m", marks, *rest]


def sum_up(runs: list[TestRun], has_host: bool, options: argparse.Namespace) -> int:
    """One line per host, and the exit code; a selection by hand may leave some hosts without tests, but not all."""
    some_ran = any(run.code == 0 for run in runs)
    good = {0, PYTEST_NOTHING_COLLECTED} if options.rest and some_ran else {0}
    print()
    for run in runs:
        verdict = "passed" if run.code == 0 else "nothing to run" if run.code in good else f"FAILED ({run.code})"
        say(f"{verdict:8} {run.label}: {run.summary} [{run.seconds:.0f} s]")
    if not has_host:
        say("no ComfyUI was found: in-process, server and browser tests were not run (set COMFYUI_PATH to one)")
    return 0 if all(run.code in good for run in runs) and (has_host or not options.require_host) else 1
