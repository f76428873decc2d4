"""`dev.py sweep`: which Python runs a sweep, and `dev.py ray`, by which machines form a cluster for it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from .children import ROOT, run_child
from .environment import python_for, python_with_ray, set_up_client
from .hosts import Host, newest_host
from .screen import DevError
from .threads import for_a_server, keep_memory, unless_set

LOCAL = "local"  # a Ray of this machine alone, for as long as the sweep takes
OF_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report its use to its makers
    "RAY_AUTH_MODE": "token",  # and run what anybody sends who reaches its ports
}


def add_sweep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands `sweep` and `ray` and their options."""
    sweep = commands.add_parser(
        "sweep", help="one workflow with many settings, on one ComfyUI, on several or on a Ray cluster"
    )
    sweep.add_argument("graph", metavar="GRAPH", help="an API export, a PNG that ComfyUI wrote, or an example's name")
    sweep.add_argument(
        "--set", action="append", default=[], metavar="WHERE=VALUES", dest="settings",
        help="NODE.INPUT=VALUE,... or NODE.INPUT=BEGIN:END, again for each setting; @FILE.csv has rows of values",
    )  # fmt: skip
    sweep.add_argument("--only", metavar="NODE", help="run what leads to this node, and take its pictures alone")
    engines = sweep.add_mutually_exclusive_group()
    engines.add_argument(
        "--url", action="append", help="a running ComfyUI, instead of a server of our own; again for each"
    )
    engines.add_argument(
        "--ray", nargs="?", const=LOCAL, metavar="ADDRESS", help="workers by Ray: on this machine, or on a cluster"
    )
    sweep.add_argument("--cores", type=int, metavar="N", help="with --ray, of each worker without a GPU")
    sweep.add_argument("--out", metavar="FOLDER", help="where results go (default: output/sweep/NAME)")
    sweep.add_argument("--rows", metavar="WHERE", help="the setting that gives the rows of the grid")
    sweep.add_argument("--columns", metavar="WHERE", help="the setting that gives its columns")
    sweep.set_defaults(run=command_sweep)
    ray = commands.add_parser(
        "ray", help="Ray's own command line, for a cluster: start --head, start --address=..., stop", add_help=False
    )
    ray.set_defaults(run=command_ray)


def command_sweep(options: argparse.Namespace) -> int:
    if options.cores is not None and (options.ray is None or options.cores < 1):
        raise DevError("--cores is a number from 1 on, for sweeps with --ray")
    command = [str(ROOT / "sweep" / "run.py"), *sweep_arguments(options)]
    if options.url:
        client_only = ("aiohttp", "PIL")
        ready = all(importlib.util.find_spec(name) for name in client_only)
        return run_child([sys.executable if ready else str(set_up_client()), *command])
    host = newest_host()
    if options.ray:
        return run_child([str(python_with_ray(host)), *command], **for_workers(host))
    python = python_for(host, ("torch", "aiohttp", "PIL"))
    return run_child([str(python), *command, "--comfy", str(host.path)], **for_a_server())


def sweep_arguments(options: argparse.Namespace) -> list[str]:
    """The options for sweep/run.py, with paths that hold in another folder."""
    graph = Path(options.graph)
    name = graph.stem if graph.is_file() else options.graph.removesuffix(".json")
    out = Path(options.out) if options.out else ROOT / "output" / "sweep" / name
    arguments = [str(graph.absolute()) if graph.is_file() else options.graph, "--out", str(out.absolute())]
    for text in options.settings:
        arguments += ["--set", f"@{Path(text[1:]).absolute()}" if text.startswith("@") else text]
    for url in options.url or ():
        arguments += ["--url", url]
    for option in ("only", "ray", "cores", "rows", "columns"):
        value = getattr(options, option)
        arguments += [] if value is None else [f"--{option}", str(value)]
    return arguments


def command_ray(options: argparse.Namespace) -> int:
    host = newest_host()
    return run_child([str(python_with_ray(host)), "-m", "ray.scripts.scripts", *options.rest], **for_workers(host))


def for_workers(host: Host) -> dict[str, str]:
    """The environment of Ray's processes on this machine: their workers start the same ComfyUI."""
    return {**unless_set(OF_RAY), **keep_memory(), "COMFYUI_PATH": str(host.path)}
