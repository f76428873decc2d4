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
from typing import NamedTuple

from .children import ROOT
from .hosts import HOST_VERSION, Host, numbers
from .packages import RAW_PROGRESS, Step, check_registry, run_steps
from .screen import DevError, say
from .venv import cache_folder, ensure_venv, installed_packages, normal_name, venv_python

TOOLS = Path(__file__).resolve().parent
CONSTRAINTS = TOOLS / "constraints.txt"
BASICS = TOOLS / "constraints.in"
OWN_REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
REQUIREMENTS = (*OWN_REQUIREMENTS, BASICS)
LARGE = re.compile(r"nvidia-|triton")  # what torch brings on Linux: half a gigabyte and less, each by itself
STAMP = "reins-setup.json"


class SetupSize(NamedTuple):
    """Gigabytes that a first set-up downloads and keeps; measured on Linux, elsewhere summed up from the files."""

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
    stamp = cache_folder() / "venv" / STAMP
    if ensure_venv():
        stamp.unlink(missing_ok=True)
    done = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    pack = digest(*(file.read_text(encoding="utf-8") for file in (*REQUIREMENTS, CONSTRAINTS)))
    wanted = {"pack": pack, "version": [], "host": ""}
    served: list[Host] = []
    if hosts and list(hosts[0].version) >= done.get("version", []):
        served = hosts[:1]
        wanted |= {"version": list(hosts[0].version), "host": digest(*requirement_lines(hosts[0]))}
    elif done:
        wanted |= {"version": done["version"], "host": done["host"]}
    if done != wanted:
        prepare_to_install()
        run_steps(install_steps(served))
        stamp.write_text(json.dumps(wanted), encoding="utf-8")
    add_missing_packages(hosts)
    return venv_python()


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
    check_registry()
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
        check_registry()
        run_steps([Step(", ".join(missing), (*missing, *constraints(hosts[:1])))])


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
