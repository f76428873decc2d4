"""Which ComfyUI is used: a named one, the one round this checkout, those in the cache, a clone, the registry's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from .children import ROOT
from .registry import FALLBACK, REGISTRY_HOSTS, check_place, fetch, is_host
from .screen import DevError, say
from .venv import cache_folder, numbers, setting_up

HOST_VERSION = "0.33.0"
HOST_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
SECONDS_TO_ANSWER = 30  # of a git host


class Host(NamedTuple):
    """A ComfyUI folder; `origin` decides whose Python runs it."""

    path: Path
    version: tuple[int, ...]
    origin: Literal["named", "located", "cached"]

    def __str__(self) -> str:
        return f"ComfyUI {'.'.join(map(str, self.version)) or 'of unknown version'} ({self.path})"


def version_of(path: Path) -> tuple[int, ...]:
    """The numbers of comfyui_version.py; empty if the file is missing."""
    file = path / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*["\']([\d.]+)', file.read_text(encoding="utf-8")) if file.is_file() else None
    return numbers(found[1]) if found else ()


def named_hosts() -> list[Host]:
    entries = [entry.strip() for entry in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if entry.strip()]
    paths = list(dict.fromkeys(Path(entry).expanduser().resolve() for entry in entries))
    for path in paths:
        if not is_host(path):
            reason = "has no comfy/, main.py and requirements.txt" if path.is_dir() else "does not exist"
            raise DevError(
                f"COMFYUI_PATH names {path}, which is not a ComfyUI folder: it {reason}. Name a folder with main.py "
                f"(several with {os.pathsep!r} between them), or unset COMFYUI_PATH"
            )
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
    """A fresh clone in the cache, or nothing if git is missing or no git host answers."""
    git = shutil.which("git")
    if git is None:
        say("git is not installed, so ComfyUI cannot be cloned")
        return []
    tag, environment = f"v{HOST_VERSION}", {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    asked = [git, "ls-remote", "--exit-code", HOST_REPOSITORY, f"refs/tags/{tag}"]
    try:
        found = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        say(f"ComfyUI cannot be cloned: {HOST_REPOSITORY} did not answer in {SECONDS_TO_ANSWER} s")
        return []
    if found.returncode != 0:
        say(f"ComfyUI cannot be cloned from {HOST_REPOSITORY}: {last_line(found.stderr)}")
        return []
    target = cache_folder() / f"ComfyUI-{HOST_VERSION}"
    with setting_up():
        if not check_place(target):
            say(f"no ComfyUI found: cloning {HOST_VERSION} into {target}")
            partial = target.with_name(f"partial-{target.name}")  # an interrupted clone must not pass for a host
            command = [git, "clone", "--depth", "1", "--branch", tag, HOST_REPOSITORY, str(partial)]
            if subprocess.call(command, env=environment) != 0:
                return []
            partial.rename(target)
    return [Host(target, version_of(target), "cached")]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "git gave no reason"


def registry_host() -> list[Host]:
    try:
        path = fetch(FALLBACK)
    except DevError as error:
        raise DevError(
            f"{error}\nOr use a ComfyUI that is on this machine: set COMFYUI_PATH to its folder, or put this checkout "
            "(or a link to it) into its custom_nodes"
        ) from error
    return [Host(path, version_of(path), "cached")]


def newest_first(hosts: list[Host]) -> list[Host]:
    return sorted(hosts, key=lambda host: host.version, reverse=True)


def present_hosts() -> list[Host]:
    """The hosts that are there, newest first; nothing is fetched."""
    return newest_first(named_hosts() or located_hosts() or cached_hosts())


def find_hosts() -> list[Host]:
    """The hosts to use, newest first; fetches one if there is none.

    Raises DevError if none can be had.
    """
    return present_hosts() or newest_first(clone_host() or registry_host())


def find_test_hosts() -> list[Host]:
    """The hosts that are found, and the three of the registry beside them, newest first."""
    found = find_hosts()  # first: with the registry's in the cache nothing newer would be cloned
    for host in REGISTRY_HOSTS:
        fetch(host)
    return newest_first(list({host.path: host for host in [*found, *cached_hosts()]}.values()))


def newest_host() -> Host:
    return find_hosts()[0]
