"""The commands of dev.py."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import signal
import sys
from pathlib import Path

from .children import INTERRUPTED, ROOT, TERMINATED, end_children, module_command, run_child
from .environment import python_for, set_up, set_up_client
from .hosts import find_hosts, find_test_hosts, newest_host, present_hosts
from .pin import write_constraints
from .screen import DevError, say
from .sweeping import add_sweep
from .testing import command_test, need_checkout
from .threads import for_a_server, keep_memory
from .venv import cache_folder

ORIGINS = {
    "named": "named by COMFYUI_PATH",
    "located": "in whose custom_nodes this checkout lies",
    "cached": "in the cache folder",
}
OUTPUT = ROOT / "output" / "demo"
PASS_ON = ("test", "bench", "train", "ray")  # their further arguments go to pytest, to a script or to Ray


def command_demo(options: argparse.Namespace) -> int:
    check_demo(options)
    arguments = ["--out", str(Path(options.out).absolute())]
    if options.checkpoint:
        # with --url it is a name in the running ComfyUI's checkpoint folder, else a file here
        arguments += ["--checkpoint", options.checkpoint if options.url else str(Path(options.checkpoint).absolute())]
    if options.only:
        arguments += ["--only", *options.only]
    if options.url:
        client_only = ("aiohttp", "PIL", "tqdm")
        ready = all(importlib.util.find_spec(name) for name in client_only)
        python = Path(sys.executable) if ready else set_up_client()
        return run_child([*module_command(python, "demo.run"), "--url", options.url, *arguments])
    host = newest_host()
    python = python_for(host, ("torch", "aiohttp", "PIL", "tqdm"))
    return run_child([*module_command(python, "demo.run"), "--comfy", str(host.path), *arguments], **for_a_server())


def check_demo(options: argparse.Namespace) -> None:
    """Raises DevError if a file or a workflow does not exist, before anything is set up for it."""
    if options.checkpoint and not options.url and not Path(options.checkpoint).is_file():
        raise DevError(f"there is no checkpoint file {options.checkpoint}")
    known = {path.stem for path in (ROOT / "demo" / "api").glob("*.json")}
    for name in options.only or ():
        if name.removesuffix(".json") not in known:
            near = [each for each in sorted(known) if name in each] or difflib.get_close_matches(name, known)
            raise DevError(f"there is no workflow {name}; there are {', '.join(near or sorted(known))}")


def command_serve(options: argparse.Namespace) -> int:
    host = newest_host()
    python = python_for(host, ("torch", "aiohttp"))
    base = Path(options.base_directory or cache_folder() / "serve").absolute()
    arguments = ["--comfy", str(host.path), "--base-directory", str(base), "--port", str(options.port)]
    if options.checkpoint:
        arguments += ["--checkpoint", str(Path(options.checkpoint).absolute())]
    return run_child([*module_command(python, "demo.serve"), *arguments], **for_a_server())


def command_hosts(options: argparse.Namespace) -> int:
    """Lists what is there, newest first; with --fetch what a command would fetch as well."""
    hosts = find_hosts() if options.fetch else present_hosts()
    for host in hosts:
        say(f"{host}, {ORIGINS[host.origin]}")
    if not hosts:
        say(f"no ComfyUI is there yet: the next command that needs one fetches it into {cache_folder()}")
    return 0


def command_pin(options: argparse.Namespace) -> int:
    write_constraints(find_test_hosts())
    return 0


def command_bench(options: argparse.Namespace) -> int:
    need_checkout("bench")
    host = newest_host()
    script = ROOT / "bench" / ("device.py" if options.device else "run.py")
    command = [str(set_up([host])), str(script), *options.rest]
    return run_child(command, COMFYUI_PATH=str(host.path), **keep_memory())


def command_train(options: argparse.Namespace) -> int:
    host = newest_host()
    python = python_for(host, ("torch", "matplotlib", "tqdm"))
    command = [str(python), str(ROOT / "demo" / "train.py"), *options.rest]
    return run_child(command, COMFYUI_PATH=str(host.path), **keep_memory())


def port_number(text: str) -> int:
    """The port; argparse shows what the error says."""
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, found {text}")
    return int(text)


def parser(description: str | None) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="run the example workflows on a real server")
    demo.add_argument("--checkpoint", help="an SD1.5 or SDXL file for the workflows that need one; its name with --url")
    demo.add_argument("--url", help="a running ComfyUI that has the pack, instead of a server of our own")
    demo.add_argument("--only", nargs="+", metavar="NAME", help="workflows to run (names of docs/examples.md)")
    demo.add_argument(
        "--out", default=ROOT / "output" / "demo", metavar="DIR", help="where the pictures go (default: output/demo)"
    )
    demo.set_defaults(run=command_demo)

    test = commands.add_parser(
        "test", help="run the tests; files, folders and options of pytest choose some", allow_abbrev=False
    )
    test.add_argument("--full", action="store_true", help="every case, and each pair of methods by itself")
    test.add_argument("--hosts", action="store_true", help="also on ComfyUI 0.30.0, 0.16.3 and 0.3.75 of the registry")
    test.add_argument("--require-host", action="store_true", help="fail where no ComfyUI is found")
    test.set_defaults(run=command_test)

    add_sweep(commands)

    bench = commands.add_parser(
        "bench",
        help="measure the nodes; --quick: the tiny network only; --only NAME: some tables; --base FOLDER: beside an "
        "older checkout",
        allow_abbrev=False,
    )
    bench.add_argument("--device", action="store_true", help="on the graphics card; --small: tiny networks, to try it")
    bench.set_defaults(run=command_bench)

    serve = commands.add_parser("serve", help="a ComfyUI with the pack, until Ctrl-C")
    serve.add_argument("--port", type=port_number, default=8188, help="1 to 65535 (default: ComfyUI's own, 8188)")
    serve.add_argument("--checkpoint", help="a checkpoint file to offer")
    serve.add_argument("--base-directory", metavar="DIR", help="models, inputs and outputs (default: in the cache)")
    serve.set_defaults(run=command_serve)

    hosts = commands.add_parser("hosts", help="list the ComfyUI folders that the other commands use")
    hosts.add_argument("--fetch", action="store_true", help="fetch one if there is none")
    hosts.set_defaults(run=command_hosts)

    pin = commands.add_parser("pin", help="make tools/constraints.txt anew")
    pin.set_defaults(run=command_pin)

    train = commands.add_parser(
        "train", help="make a file of demo/weights anew; `train --help` names them", add_help=False
    )
    train.set_defaults(run=command_train)
    return top


def main(description: str | None = None) -> int:
    """Runs what the command line asks for and returns the exit code."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if number := getattr(signal, name, None):
            signal.signal(number, end_children)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a folder's name need not fit the encoding of a pipe
    arguments = parser(description)
    options, options.rest = arguments.parse_known_args()
    if options.rest and options.command not in PASS_ON:
        arguments.error(f"unknown arguments: {' '.join(options.rest)}")
    try:
        return options.run(options)
    except DevError as error:
        say(str(error))
        return 2
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
