"""The cached virtual environment: what is in it, and when it is made anew."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .children import ROOT
from .hosts import HOST_VERSION, Host
from .packages import RAW_PROGRESS, Step, check_registry, log_file, run_steps
from .screen import DevError, say
from .venv import (
    cache_folder,
    ensure_venv,
    installed_packages,
    normal_name,
    numbers,
    setting_up,
    venv_folder,
    venv_python,
)

TOOLS = Path(__file__).resolve().parent
CONSTRAINTS = TOOLS / "constraints.txt"
BASICS = TOOLS / "constraints.in"
OWN_REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
REQUIREMENTS = (*OWN_REQUIREMENTS, BASICS)
LARGE = re.compile(r"nvidia-|triton")  # what torch brings on Linux: half a gigabyte and less, each by itself
STAMP = "reins-setup.json"
PROOF = ("torch", "aiohttp", "pytest")  # one of each step
CLIENT = ("aiohttp", "pillow", "tqdm")
SWEEP = ROOT / "requirements-sweep.txt"
Stamp = dict[str, Any]  # of the pack's requirements, of the host's, and the host's version


class SetupSize(NamedTuple):
    """Gigabytes that a first set-up downloads and keeps.

    Both were measured on Linux.  Elsewhere the download is the sum of the files, and the disk an estimate from it.
    """

    download: float
    disk: float


def setup_size() -> SetupSize:
    """By the system: only on Linux does torch come with CUDA's libraries."""
    return SetupSize(3.5, 6.5) if sys.platform == "linux" else SetupSize(0.8, 2.5)


def check_disk() -> None:
    """Raises DevError if the cache folder's disk has no room for a first set-up."""
    folder, size = cache_folder(), setup_size()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    needed = size.disk + 1  # the file that is being downloaded stands beside what is unpacked
    say(f"first set-up: it downloads {size.download} GB and takes {size.disk} GB in {folder} ({free:.1f} GB are free)")
    if free < needed:
        raise DevError(
            f"{folder} has {free:.1f} GB free, and the set-up needs {needed:.1f} GB. Free some space, or set "
            "REINS_HOME to a folder on another disk, and run the same command again"
        )


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def set_up(hosts: list[Host]) -> Path:
    """The Python of the cached environment, made or topped up if its stamp does not fit.

    Pins follow the newest host that this environment has ever served: naming an old one for a run must not take the
    frontend back.  The other hosts only add packages that are missing by name.
    Raises DevError if the packages cannot be had; what was installed until then stays.
    """
    with setting_up():
        made = ensure_venv()
        done = {} if made else read_stamp()
        served, wanted = to_serve(hosts, done)
        if done != wanted:
            prepare_to_install()
            run_steps(install_steps(served))
            check_installed(PROOF)
            write_stamp(wanted)
        add_missing_packages(hosts)
    return venv_python()


def to_serve(hosts: Sequence[Host], done: Stamp) -> tuple[Sequence[Host], Stamp]:
    """The hosts whose pins are installed, one or none, and the stamp that says so."""
    pack = digest(*(file.read_text(encoding="utf-8") for file in (*REQUIREMENTS, CONSTRAINTS)))
    if hosts and list(hosts[0].version) >= done.get("version", []):
        of_host = {"version": list(hosts[0].version), "host": digest(*requirement_lines(hosts[0]))}
        return hosts[:1], {"pack": pack, **of_host}
    return (), {"pack": pack, "version": done.get("version", []), "host": done.get("host", "")}


def read_stamp() -> Stamp:
    """What the last complete set-up wrote; empty if there was none, or if the file does not make sense."""
    try:
        stamp = json.loads((venv_folder() / STAMP).read_text(encoding="utf-8"))
        return stamp if all(isinstance(part, int) for part in stamp["version"]) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_stamp(stamp: Stamp) -> None:
    """Writes it as a whole: half a stamp would be read as none."""
    partial = venv_folder() / f"{STAMP}.new"
    partial.write_text(json.dumps(stamp), encoding="utf-8")
    partial.replace(venv_folder() / STAMP)


def check_installed(names: Sequence[str]) -> None:
    """Raises DevError if pip was content and a package is not in the environment all the same."""
    present = installed_packages()
    if missing := [name for name in names if name not in present]:
        raise DevError(
            f"pip installed {', '.join(missing)} elsewhere than in {venv_folder()}, by its settings: see "
            f"`pip config list`, and what it said in {log_file()}"
        )


def set_up_client() -> Path:
    """The Python of the cached environment with what talking to a running ComfyUI needs, a few megabytes.

    Raises DevError if the packages cannot be had.
    """
    with setting_up():
        ensure_venv()
        if missing := [name for name in CLIENT if name not in installed_packages()]:
            check_registry(pinned("aiohttp"))
            run_steps([Step(", ".join(missing), (*missing, *constraints(())))])
            check_installed(CLIENT)
    return venv_python()


def pinned(name: str) -> str:
    """The tested version of a package that has one for every system and Python, as `name==version`."""
    (line,) = re.findall(rf"^{name}==\S+$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return line


def install_steps(served: Sequence[Host]) -> list[Step]:
    """What is installed, the largest first and in several steps, so that an interrupted set-up goes on after them."""
    tested = constraints(served)
    present = installed_packages()
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines() if tested and sys.platform == "linux" else []
    missing = [line for line in lines if LARGE.match(line) and normal_name(line) not in present]
    steps = [Step(normal_name(line), ("--no-deps", line)) for line in missing]
    steps.append(Step("torch", ("-r", str(BASICS), *tested)))
    steps += [Step("what ComfyUI needs", ("-r", str(host.path / "requirements.txt"), *tested)) for host in served]
    own = [part for file in OWN_REQUIREMENTS for part in ("-r", str(file))]
    return [*steps, Step("what the tests need", (*own, "-r", str(BASICS), *tested))]


def prepare_to_install() -> None:
    """Checks what can be known before the first large download: room and network; takes a pip that counts bytes.

    Raises DevError if room or network is missing.
    """
    if "torch" not in installed_packages():
        check_disk()
    check_registry(pinned("torch"))
    if numbers(installed_packages()["pip"]) < RAW_PROGRESS:
        run_steps([Step("a newer pip", ("--constraint", str(CONSTRAINTS), "--upgrade", "pip"))])


def constraints(hosts: Sequence[Host]) -> tuple[str, ...]:
    """The tested versions as arguments for pip; a newer ComfyUI may ask for others, so it gets what pip chooses."""
    if any(host.version > numbers(HOST_VERSION) for host in hosts):
        say(f"{hosts[0]} is newer than {HOST_VERSION}, the newest one that was tested: pip chooses the versions")
        return ()
    return ("--constraint", str(CONSTRAINTS))


def add_missing_packages(hosts: list[Host]) -> None:
    """Installs what the other hosts name and the environment has in no version."""
    present = installed_packages()
    lines = [line for host in hosts for line in requirement_lines(host)]
    missing = sorted({name for line in lines if (name := normal_name(line)) and name not in present})
    if missing:
        say(f"adding what other hosts need: {', '.join(missing)}")
        check_registry(pinned("torch"))
        run_steps([Step(", ".join(missing), (*missing, *constraints(hosts[:1])))])


def python_with_ray(host: Host) -> Path:
    """The Python that runs the host's server, with Ray, which is added to the cached environment if it is not there.

    Raises DevError if Ray cannot be had, or if nothing may be installed for this host.
    """
    python = python_for(host, ("torch", "aiohttp", "PIL"))
    if host.origin == "located":
        if importlib.util.find_spec("ray") is None:
            raise DevError(f"{python} lacks ray: run `{python} -m pip install -r {SWEEP}`, or leave --ray out")
        return python
    (wanted,) = (line for line in SWEEP.read_text(encoding="utf-8").splitlines() if normal_name(line))
    with setting_up():
        if installed_packages().get("ray") != wanted.partition("==")[2]:
            say(f"Ray is used for the first time: installing {wanted} into {venv_folder()}")
            check_registry(wanted)
            run_steps([Step("Ray", ("-r", str(SWEEP), *constraints([host])))])
            check_installed(("ray",))
    return python


def requirement_lines(host: Host) -> list[str]:
    return (host.path / "requirements.txt").read_text(encoding="utf-8").splitlines()


def python_for(host: Host, modules: tuple[str, ...]) -> Path:
    """Whose Python runs the server: inside a user's ComfyUI the one that runs this file, and nothing is installed.

    Raises DevError if that Python lacks one of the modules.
    """
    if host.origin != "located":
        return set_up([host])
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise DevError(
            f"{sys.executable} lacks {', '.join(missing)}: run dev.py with the Python that runs {host.path}, "
            "or set COMFYUI_PATH to use an environment of its own"
        )
    return Path(sys.executable)
