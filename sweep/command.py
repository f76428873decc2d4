"""A sweep from its options to its exit code."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..tools.screen import ProgressLine, say
from .choice import Choice, choose
from .drive import Drive
from .errors import SweepError
from .graph import leading_to, read_graph
from .needs import needs_of
from .page import write_page
from .plan import make_plan, read_axes
from .records import Records
from .server import OwnServer, RunningServer
from .servers import Servers
from .sheet import write_sheet
from .table import write_table
from .where import one_node

if TYPE_CHECKING:
    from .drive import Engine
    from .plan import Plan

REFUSED, INCOMPLETE, INTERRUPTED = 2, 1, 130
ERRORS_SHOWN = 3
AGAIN = "run the same command again: it goes on where this one stopped"


def sweep(options: argparse.Namespace) -> int:
    """Runs a sweep and returns the exit code: 0 if every prompt has its pictures."""
    try:
        graph = read_graph(options.graph)
        if options.only:
            graph = leading_to(graph, one_node(graph, options.only))
        axes = read_axes(graph, options.set)
        with engine_for(options) as engine:
            plan = make_plan(graph, axes, engine.object_info())
            choice = choose(plan, options.rows, options.columns)
            check_workers(engine, plan)
            return run(engine, plan, Records(options.out, plan), choice)
    except SweepError as error:
        say(f"sweep: {error}")
        return REFUSED
    except KeyboardInterrupt:
        say(f"interrupted; {AGAIN}")
        return INTERRUPTED


@contextlib.contextmanager
def engine_for(options: argparse.Namespace) -> Iterator[Engine]:
    """The engine that the options ask for, started."""
    if options.url:
        engine: Engine = Servers([RunningServer(url) for url in options.url])
    elif options.ray:
        from .cluster import Cluster

        engine = Cluster(options.ray, options.cores)
    else:
        from ..demo.host import has_accelerator

        say(f"starting ComfyUI ({options.comfy})")
        engine = Servers([OwnServer("this machine", options.comfy, not has_accelerator(), {})])
    with engine:
        yield engine


def check_workers(engine: Engine, plan: Plan) -> None:
    """Raises SweepError if a worker lacks a node, a model or an option that the rows name."""
    lacks = [
        f"  {worker} has {lack}" for worker, lacking in engine.missing(needs_of(plan.rows)).items() for lack in lacking
    ]
    if lacks:
        raise SweepError("not every worker has what the workflow names:\n" + "\n".join(lacks))


def run(engine: Engine, plan: Plan, records: Records, choice: Choice) -> int:
    """Runs the rows, shows how far they are, and writes table, page and grid, also after an interrupt."""

    def report() -> None:
        write_table(plan, records)
        write_page(plan, records, choice, records.folder.name)

    drive = Drive(plan, records, report)
    counts = " x ".join(f"{len(plan.values_of(place))} of {label}" for place, label in enumerate(plan.labels))
    done = sum(map(records.is_done, plan.rows))
    say(
        f"{len(plan.rows)} prompts: {counts or 'the workflow as it is'}"
        + (f"; {done} are done already" if done else "")
    )
    say(f"{counted(engine.size, 'worker')}; results appear in {records.folder}")
    try:
        with ProgressLine() as line:
            drive.run(engine, line.show)
        say(drive.progress(engine))
    finally:
        report()
        write_sheet(plan, records, choice)
    return sum_up(drive, records)


def sum_up(drive: Drive, records: Records) -> int:
    """Says what failed and where the results are. Returns the exit code."""
    failed, unfinished = drive.failed(), drive.unfinished()
    for row in failed[:ERRORS_SHOWN]:
        say(f"failed: {records.by_key[row.key].error}")
    if failed:
        say(f"{counted(len(failed), 'prompt')} failed twice; results.csv has the error of each")
    if unfinished:
        say(f"{counted(len(unfinished), 'prompt')} had no worker left to run on; {AGAIN}")
    say(f"open {records.folder / 'index.html'}; to share: {records.folder / 'grid.png'}")
    return INCOMPLETE if failed or unfinished else 0


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number} {what}{'s' * (number != 1)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line. `dev.py` has checked and completed them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("graph")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--only")
    parser.add_argument("--url", action="append")
    parser.add_argument("--ray")
    parser.add_argument("--cores", type=int)
    parser.add_argument("--comfy", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows")
    parser.add_argument("--columns")
    return parser.parse_args(arguments)
