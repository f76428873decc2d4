"""Runs the example workflows on a real ComfyUI server and shows what comes out.

python -m demo.run --comfy DIR      a new server, for as long as the demo takes
python -m demo.run --url URL        a running ComfyUI that has the pack
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .client import Client, ExecutionFailed, Graph, Json, PromptRejected
from .graphs import (
    CHECKPOINT_LOADER,
    EXAMPLE_CHECKPOINT,
    FEW_STEPS,
    SMALL_PIXELS,
    UnknownWorkflow,
    load_graphs,
    needs_checkpoint,
    needs_more_files,
    quick_first,
    shrunk,
    with_checkpoint,
)
from .host import Host, HostDied, HostSettings, has_accelerator, offer_file, weightless_arguments, write_weightless
from .pictures import Picture, contact_sheet, save_pictures
from .progress import progress

ROOT = Path(__file__).resolve().parent.parent
RUN_SECONDS = 3600
MORE_FILES = (
    "beside a checkpoint they need a ControlNeXt, a UniCon, an adapter, an image encoder or pictures: see their notes"
)


class DemoError(Exception):
    """A reason why no workflow can be run at all."""


class Session(NamedTuple):
    """A server to talk to, the checkpoint that it loads if one is needed, and whether this one lacks weights."""

    client: Client
    checkpoint: str
    weightless: bool


@contextlib.contextmanager
def own_server(comfy: Path, checkpoint: Path | None, needed: bool) -> Iterator[Session]:
    """A server with a temporary base directory, which has one checkpoint if one is needed.

    Raises DemoError if the checkpoint is no file, or if the server does not have the pack.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise DemoError(f"there is no checkpoint file {checkpoint}")
    weightless = needed and checkpoint is None
    with tempfile.TemporaryDirectory(prefix="reins-demo-", ignore_cleanup_errors=True) as folder:
        arguments = weightless_arguments(comfy) if weightless else ()
        settings = HostSettings(comfy, Path(folder), cpu=not has_accelerator(), arguments=arguments)
        settings.checkpoints.mkdir(parents=True)
        name = ""
        if weightless:
            print(
                "writing a checkpoint without weights: it takes the place of SD1.5, its pictures are noise", flush=True
            )
            name = write_weightless(comfy, "sd15-min", settings.checkpoints)
        elif checkpoint is not None:
            name = offer_file(checkpoint, settings.checkpoints)
        print(f"starting ComfyUI ({comfy}) on the {'CPU' if settings.cpu else 'accelerator'}", flush=True)
        with Host(settings) as host:
            print(f"ready after {host.boot_seconds:.0f} s at {host.url}", flush=True)
            check_pack(host.client, f"the log ends with\n{host.log_tail()}")
            yield Session(host.client, name, weightless)


@contextlib.contextmanager
def running_server(url: str, checkpoint: str | None, needed: bool) -> Iterator[Session]:
    """A ComfyUI that somebody else started. `checkpoint` is a name that its loader lists.

    Raises DemoError if no ComfyUI answers, or if it lacks the pack or the checkpoint.
    """
    client = Client(url)
    try:
        offered = checkpoint_names(client.object_info()[CHECKPOINT_LOADER])
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DemoError(f"no ComfyUI answers at {url}: {error}") from error
    check_pack(client, "link this checkout into its custom_nodes and restart it")
    name = checkpoint or EXAMPLE_CHECKPOINT
    if needed and name not in offered:
        raise DemoError(f"that ComfyUI has no checkpoint {name}; name one by --checkpoint: {', '.join(offered)}")
    yield Session(client, name, False)


def checkpoint_names(loader: Json) -> list[str]:
    """The choices of a loader's combo box. Hosts describe one in two forms."""
    kind, *options = loader["input"]["required"]["ckpt_name"]
    return kind if isinstance(kind, list) else options[0]["options"]


def check_pack(client: Client, advice: str) -> None:
    """Raises DemoError if the server knows no node of the pack."""
    if not any(name.startswith("Reins_") for name in client.object_info()):
        raise DemoError(f"that ComfyUI knows no node of this pack; {advice}")


def choose_graphs(options: argparse.Namespace) -> dict[str, Graph]:
    """The workflows that --only names, else all for which the files are there, quick ones first.

    Raises DemoError if there are none, or if those that are named need more files.
    """
    graphs = load_graphs(options.only)
    if not graphs:
        raise DemoError("there is no workflow in demo/api")
    left_out = ", ".join(name for name, graph in graphs.items() if needs_more_files(graph))
    if options.only:
        if left_out and not options.url:
            raise DemoError(f"{left_out}: {MORE_FILES}; --url runs them on a ComfyUI that has these")
        return graphs
    graphs = quick_first({name: graph for name, graph in graphs.items() if not needs_more_files(graph)})
    if left_out:
        print(f"left out: {left_out}; {MORE_FILES}")
    if options.checkpoint:
        return graphs
    ready = {name: graph for name, graph in graphs.items() if not needs_checkpoint(graph)}
    print(f"{len(ready)} workflows for the demo model; --checkpoint FILE runs {len(graphs) - len(ready)} more on yours")
    return ready


def make_folder(folder: Path) -> None:
    """Makes the folder for the pictures.

    Raises DemoError if the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoError(
            f"no picture can be saved in {folder}: {error.strerror}; name another folder by --out"
        ) from error


def run_workflow(session: Session, name: str, graph: Graph, folder: Path) -> list[Picture]:
    """Runs one graph, saves its pictures and prints a line. Returns the pictures."""
    if not needs_more_files(graph):  # an adapter needs the checkpoint that it was made for
        graph = with_checkpoint(graph, session.checkpoint)
    if session.weightless and needs_checkpoint(graph):
        graph = shrunk(graph)
    with progress(name, graph) as shown:
        result = session.client.run(graph, RUN_SECONDS, shown)
    files = [(file["filename"], session.client.image_bytes(file)) for file in result.image_files()]
    pictures = save_pictures(name, files, folder)
    print(f"  {name:<40} {result.seconds:7.1f} s   {len(pictures)} picture{'s' * (len(pictures) != 1)}", flush=True)
    return pictures


def run_all(session: Session, graphs: dict[str, Graph], folder: Path) -> int:
    """Runs the graphs one after the other, goes on if one fails, and sums up. Returns the exit code."""
    if session.weightless:
        print(f"at most {SMALL_PIXELS} pixels and {FEW_STEPS} steps now; --checkpoint FILE, with weights, cuts nothing")
    start, pictures, failed = time.monotonic(), [], []
    for name, graph in graphs.items():
        try:
            made = run_workflow(session, name, graph, folder)
            if made and not pictures:
                print(f"  the first picture: {made[0].path}", flush=True)
            pictures += made
        except (PromptRejected, ExecutionFailed) as error:
            failed.append(name)
            print(f"  {name:<40}  FAILED   {error}", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(graphs) - len(failed)} of {len(graphs)} workflows ran in {seconds:.1f} s; pictures in {folder}")
    if pictures:
        contact_sheet(pictures, folder / "contact_sheet.png")
        print(f"the {len(pictures)} pictures of this run on one sheet: {folder / 'contact_sheet.png'}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--comfy", type=Path, help="a ComfyUI folder")
    server.add_argument("--url", help="a running ComfyUI")
    parser.add_argument("--checkpoint", help="a file, or with --url a name in its checkpoint folder")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo")
    return parser.parse_args(arguments)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended on the way out
    options = parse()
    try:
        graphs = choose_graphs(options)
        make_folder(options.out)
        needed = any(needs_checkpoint(graph) and not needs_more_files(graph) for graph in graphs.values())
        if options.url:
            server = running_server(options.url, options.checkpoint, needed)
        else:
            checkpoint = Path(options.checkpoint) if options.checkpoint else None
            server = own_server(options.comfy.resolve(), checkpoint, needed)
        with server as session:
            return run_all(session, graphs, options.out)
    except (DemoError, UnknownWorkflow, HostDied, ConnectionError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
