#!/usr/bin/env python3
"""One command for people who try, test or change the pack; needs only Python 3.10 and nothing installed.

    python3 dev.py demo     the example workflows through a real ComfyUI server, pictures in output/demo
    python3 dev.py test     the tests, on every ComfyUI that can be found
    python3 dev.py bench    what each node costs
    python3 dev.py serve    a ComfyUI with the pack linked in, until Ctrl-C
    python3 dev.py train    makes a file of demo/weights anew: base, clip-vision, checked, ip-adapter, controlnext

The first run prepares a virtual environment (and, where none is found, a ComfyUI) in a cache folder; REINS_HOME names
another one.  COMFYUI_PATH names one or several ComfyUI folders to use instead of the ones that are found.

One file over 300 lines on purpose: it is what runs while nothing else does.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

# A matching trio: a torchaudio of another release stops the server at import.  This is the only place that pins it.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
HOST_VERSION = "0.33.0"
HOST_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
PYTEST_NOTHING_COLLECTED = 5
TERMINATED = 143


class DevError(Exception):
    """Something the person at the keyboard can put right; the text says how."""


def say(text: str) -> None:
    print(f"[reins] {text}", flush=True)


# ---------------------------------------------------------------------------------------------------- hosts


class Host(NamedTuple):
    """A ComfyUI folder; `origin` decides whose Python runs it."""

    path: Path
    version: tuple[int, ...]
    origin: Literal["named", "located", "cached"]

    def __str__(self) -> str:
        return f"ComfyUI {'.'.join(map(str, self.version)) or 'of unknown version'} ({self.path})"


def cache_folder() -> Path:
    """REINS_HOME, else `reins` in the folder where this system keeps caches."""
    if named := os.environ.get("REINS_HOME"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "reins"


def is_host(path: Path) -> bool:
    return (path / "comfy").is_dir() and (path / "main.py").is_file()


def version_of(path: Path) -> tuple[int, ...]:
    """The numbers of comfyui_version.py, so that 0.33 sorts above 0.8; empty where the file is missing."""
    file = path / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*"([\d.]+)', file.read_text()) if file.is_file() else None
    return tuple(int(part) for part in found[1].split(".") if part) if found else ()


def named_hosts() -> list[Host]:
    entries = [entry for entry in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if entry.strip()]
    paths = list(dict.fromkeys(Path(entry).expanduser().resolve() for entry in entries))
    for path in paths:
        if not is_host(path):
            raise DevError(f"COMFYUI_PATH names {path}, which is not a ComfyUI folder: it has no comfy/ and main.py")
    return [Host(path, version_of(path), "named") for path in paths]


def located_hosts() -> list[Host]:
    """The ComfyUI in whose custom_nodes this checkout lies, or is linked.

    A shell knows the linked path of the current folder only in PWD: the system call resolves it.
    """
    shell_folder = Path(os.environ.get("PWD", os.curdir))
    here = shell_folder if shell_folder.is_dir() and shell_folder.samefile(os.curdir) else Path.cwd()
    invoked = Path(os.path.normpath(here / sys.argv[0])).parent
    for folder in (invoked, ROOT):
        if folder.parent.name == "custom_nodes" and is_host(folder.parent.parent):
            path = folder.parent.parent
            return [Host(path, version_of(path), "located")]
    return []


def cached_hosts() -> list[Host]:
    folders = [path for path in cache_folder().glob("ComfyUI-*") if is_host(path)]
    return [Host(path, version_of(path), "cached") for path in folders]


def clone_host() -> list[Host]:
    """A fresh clone in the cache, or nothing where git or the network is missing."""
    git = shutil.which("git")
    if git is None:
        say("git is not installed, so no ComfyUI can be fetched")
        return []
    target = cache_folder() / f"ComfyUI-{HOST_VERSION}"
    partial = target.with_name(f"partial-{os.getpid()}-{target.name}")  # an interrupted clone must not pass for a host
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"no ComfyUI found: fetching {HOST_VERSION} into {target}")
    command = [git, "clone", "--depth", "1", "--branch", f"v{HOST_VERSION}", HOST_REPOSITORY, str(partial)]
    try:
        if subprocess.call(command) == 0:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [Host(target, version_of(target), "cached")] if is_host(target) else []


def find_hosts() -> list[Host]:
    """The hosts to use, newest first; an empty list where there is none to be had."""
    hosts = named_hosts() or located_hosts() or cached_hosts() or clone_host()
    return sorted(hosts, key=lambda host: host.version, reverse=True)


def newest_host() -> Host:
    hosts = find_hosts()
    if not hosts:
        raise DevError(
            "no ComfyUI to be had. Any of these gives one:\n"
            "  - set COMFYUI_PATH to a ComfyUI folder\n"
            "  - put (or link) this checkout into the custom_nodes folder of a ComfyUI\n"
            f"  - with git and a network, run this again: it fetches one; or put one at "
            f"{cache_folder() / f'ComfyUI-{HOST_VERSION}'} by hand"
        )
    return hosts[0]


# ---------------------------------------------------------------------------------------------- environment


def venv_python() -> Path:
    folder = cache_folder() / "venv"
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def installed_packages() -> set[str]:
    """Names of the distributions in the cached environment, read without starting its Python."""
    venv = cache_folder() / "venv"
    folders = [str(path) for path in (*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages"))]
    found = importlib.metadata.distributions(path=folders)
    return {normal_name(dist.metadata["Name"]) for dist in found if dist.metadata["Name"]}


def normal_name(requirement: str) -> str:
    """The bare name of a requirement line in the spelling that pip compares by; empty for comments and options."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def pip_install(*arguments: str) -> None:
    command = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.call(command) != 0:
        raise DevError("pip could not install what is needed (its message is above); run the same command again")


def make_venv() -> None:
    folder = cache_folder() / "venv"
    say(f"making a virtual environment in {folder}")
    options = ["--clear"] if folder.exists() and not venv_python().exists() else []  # its Python was uninstalled
    if subprocess.call([sys.executable, "-m", "venv", *options, str(folder)]) != 0:
        raise DevError("this Python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)")


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def set_up(hosts: list[Host]) -> Path:
    """The Python of the cached environment, made or topped up where its stamp does not fit.

    Pins follow the newest host that this environment has ever served: naming an old one for a run must not take the
    frontend back.  The other hosts only add packages that are missing by name.
    """
    stamp = cache_folder() / "venv" / "reins-setup.json"
    if not venv_python().exists() or "pip" not in installed_packages():
        stamp.unlink(missing_ok=True)
        make_venv()
    done = json.loads(stamp.read_text()) if stamp.is_file() else {}
    wanted = {"pack": digest(*TORCH, *(file.read_text() for file in REQUIREMENTS)), "version": [], "host": ""}
    arguments = [*TORCH, *(part for file in REQUIREMENTS for part in ("-r", str(file)))]
    if hosts and list(hosts[0].version) >= done.get("version", []):
        requirements = hosts[0].path / "requirements.txt"
        wanted |= {"version": list(hosts[0].version), "host": digest(requirements.read_text())}
        arguments += ["-r", str(requirements)]
    elif done:
        wanted |= {"version": done["version"], "host": done["host"]}
    if done != wanted:
        say("installing packages; the first time this takes some minutes")
        pip_install(*arguments)
        stamp.write_text(json.dumps(wanted))
    add_missing_packages(hosts)
    return venv_python()


def add_missing_packages(hosts: list[Host]) -> None:
    present = installed_packages()
    lines = [line for host in hosts for line in (host.path / "requirements.txt").read_text().splitlines()]
    missing = sorted({name for line in lines if (name := normal_name(line)) and name not in present})
    if missing:
        say(f"adding what other hosts need: {', '.join(missing)}")
        pip_install(*missing)


def python_for(host: Host, modules: tuple[str, ...]) -> Path:
    """Whose Python runs the server: inside a user's ComfyUI the one that runs this file, and nothing is installed."""
    if host.origin != "located":
        return set_up([host])
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise DevError(
            f"{sys.executable} lacks {', '.join(missing)}: run dev.py with the Python that runs {host.path}, "
            "or set COMFYUI_PATH to use an environment of its own"
        )
    return Path(sys.executable)


# ------------------------------------------------------------------------------------------------- children


_children: list[subprocess.Popen[bytes]] = []


def end_children(*_: object) -> NoReturn:
    """Passes SIGTERM on, which unlike Ctrl-C reaches this process alone; children clean up on an interrupt."""
    for child in _children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    sys.exit(TERMINATED)


def child_env(**extra: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **extra}


def run_child(command: list[str], **extra_env: str) -> int:
    """The exit code of a child that ends itself on Ctrl-C; it is left time to clean up."""
    with subprocess.Popen(command, cwd=ROOT, env=child_env(**extra_env)) as child:
        _children.append(child)
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.wait()
            return 130


class TestRun(NamedTuple):
    """One pytest process: `output` is empty where it was shown as it came."""

    label: str
    code: int
    seconds: float
    summary: str
    output: bytes


def run_pytest(label: str, arguments: list[str], env: dict[str, str], show: bool) -> TestRun:
    """Runs pytest to its end; its output is passed on at once, or kept to be shown in one piece."""
    start, output = time.monotonic(), bytearray()
    command = [str(venv_python()), "-m", "pytest", "--durations=10", "-rfEs", *arguments]
    if sys.stdout.isatty():
        command.append("--color=yes")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        _children.append(child)
        while chunk := child.stdout.read1(65536):
            output += chunk
            if show:
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
    kept = b"" if show else bytes(output)
    return TestRun(
        label, child.returncode, time.monotonic() - start, pytest_summary(output.decode("utf-8", "replace")), kept
    )


def pytest_summary(output: str) -> str:
    """Pytest's own closing line; interpreters may have written more after it."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    found = re.findall(r"^=*[ \t]*(.*? in \d[\d.]*s\b.*?)[ \t]*=*$", plain, re.MULTILINE)
    return found[-1] if found else "pytest gave no summary"


# ------------------------------------------------------------------------------------------------- commands


def command_demo(options: argparse.Namespace) -> int:
    arguments = ["--out", str(Path(options.out).absolute())]
    if options.checkpoint:
        # with --url it is a name in the running ComfyUI's checkpoint folder, else a file here
        arguments += ["--checkpoint", options.checkpoint if options.url else str(Path(options.checkpoint).absolute())]
    if options.only:
        arguments += ["--only", *options.only]
    if options.url:
        client_only = ("aiohttp", "PIL", "tqdm")
        ready = all(importlib.util.find_spec(name) for name in client_only)
        python = Path(sys.executable) if ready else set_up([])
        return run_child([str(python), "-m", "demo.run", "--url", options.url, *arguments])
    host = newest_host()
    python = python_for(host, ("torch", "aiohttp", "PIL", "tqdm"))
    return run_child([str(python), "-m", "demo.run", "--comfy", str(host.path), *arguments])


def command_serve(options: argparse.Namespace) -> int:
    host = newest_host()
    python = python_for(host, ("torch", "aiohttp"))
    base = Path(options.base_directory or cache_folder() / "serve").absolute()
    arguments = ["--comfy", str(host.path), "--base-directory", str(base), "--port", str(options.port)]
    if options.checkpoint:
        arguments += ["--checkpoint", str(Path(options.checkpoint).absolute())]
    return run_child([str(python), "-m", "demo.serve", *arguments])


# glibc gives large blocks back after each use; faulting them in again would take half of a CPU's time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


def command_bench(options: argparse.Namespace) -> int:
    host = newest_host()
    command = [str(set_up([host])), str(ROOT / "bench" / "run.py"), *options.rest]
    return run_child(command, COMFYUI_PATH=str(host.path), **KEEP_MEMORY)


def command_train(options: argparse.Namespace) -> int:
    host = newest_host()
    python = python_for(host, ("torch", "matplotlib", "tqdm"))
    command = [str(python), str(ROOT / "demo" / "train.py"), *options.rest]
    return run_child(command, COMFYUI_PATH=str(host.path), **KEEP_MEMORY)


def command_test(options: argparse.Namespace) -> int:
    """Two processes at a time: the first one a person sees running, what ran beside and after it is shown at the end.

    What takes longest on the newest host, server and browser, and measured pictures, are processes of their own.
    """
    hosts = find_hosts()
    set_up(hosts)
    env = child_env(OMP_NUM_THREADS="1", **({"REINS_FULL": "1"} if options.full else {}))
    if hosts:
        newest = {**env, "COMFYUI_PATH": str(hosts[0].path)}
        if not options.full and not options.rest:
            newest["REINS_COVERING"] = "1"
        jobs = [(str(hosts[0]), options.rest, newest)]
        if not options.rest:  # a selection by hand stays in one process
            server = "server or browser"
            jobs = [
                (str(hosts[0]), ["-m", f"not (slow or {server})"], newest),
                (f"{hosts[0]}: server, browser", ["-m", server], newest),
                (f"{hosts[0]}: numbers", ["-m", f"slow and not ({server})"], newest),
            ]
    else:
        env.pop("COMFYUI_PATH", None)
        jobs = [("without a host", ["-m", "not host and not server and not browser", *options.rest], env)]
    older = ["-m", "host and not server and not browser", *options.rest]
    for place, host in reversed(list(enumerate(hosts[1:]))):  # what takes longer first
        share = f"{place}/{len(hosts) - 1}" if not options.full and not options.rest else "all"
        jobs.append((str(host), older, {**env, "COMFYUI_PATH": str(host.path), "REINS_BRIEF": share}))
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        say(f"tests: {jobs[0][0]}" + (f"; shown afterwards: {len(jobs) - 1} more" if len(jobs) > 1 else ""))
        started = [pool.submit(run_pytest, *job, show=place == 0) for place, job in enumerate(jobs)]
        runs = [started[0].result()]
        for job in started[1:]:
            runs.append(job.result())
            say(f"tests: {runs[-1].label}")
            sys.stdout.buffer.write(runs[-1].output)
            sys.stdout.flush()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the next one shall not begin
    return sum_up(runs, bool(hosts), options)


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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__.partition("\nOne file")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="run the example workflows on a real server")
    demo.add_argument("--checkpoint", help="an SD1.5 or SDXL file for the workflows that need one")
    demo.add_argument("--url", help="a running ComfyUI that has the pack, instead of a server of our own")
    demo.add_argument("--only", nargs="+", metavar="NAME", help="workflows to run (names in demo/api)")
    demo.add_argument("--out", default=ROOT / "output" / "demo", metavar="DIR", help="where the pictures go")
    demo.set_defaults(run=command_demo)

    test = commands.add_parser("test", help="run the tests; further arguments go to pytest", allow_abbrev=False)
    test.add_argument("--full", action="store_true", help="every case, and each pair of methods by itself")
    test.add_argument("--require-host", action="store_true", help="fail where no ComfyUI is found")
    test.set_defaults(run=command_test)

    bench = commands.add_parser("bench", help="measure the nodes; --quick: the tiny network only", allow_abbrev=False)
    bench.set_defaults(run=command_bench)

    serve = commands.add_parser("serve", help="a ComfyUI with the pack, until Ctrl-C")
    serve.add_argument("--port", type=int, default=8188)
    serve.add_argument("--checkpoint", help="a checkpoint file to offer")
    serve.add_argument("--base-directory", metavar="DIR", help="models, inputs and outputs (default: in the cache)")
    serve.set_defaults(run=command_serve)

    train = commands.add_parser(
        "train", help="make a file of demo/weights anew; `train --help` names them", add_help=False
    )
    train.set_defaults(run=command_train)
    return top


def main() -> int:
    signal.signal(signal.SIGTERM, end_children)
    arguments = parser()
    options, options.rest = arguments.parse_known_args()
    if options.rest and options.command in ("demo", "serve"):
        arguments.error(f"unknown arguments: {' '.join(options.rest)}")
    try:
        return options.run(options)
    except DevError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
