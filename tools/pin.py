"""`dev.py pin`: writes tools/constraints.txt, the versions that a set-up installs."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .environment import CONSTRAINTS, REQUIREMENTS, requirement_lines
from .hosts import Host
from .packages import Step, run_steps
from .screen import DevError, say
from .venv import cache_folder, ensure_venv, normal_name, setting_up, venv_python

OLDEST_PYTHON = "3.10"
HEADER = """\
# Made by `python3 dev.py pin`: versions for every system and Python that the pack supports, chosen on one day and
# tested on Linux with Python 3.11.  What ComfyUI pins itself (its frontend, templates and kernels) is not in here.
"""


def write_constraints(hosts: list[Host]) -> None:
    """Chooses the newest versions that fit all requirements, on every system and Python, and writes them down.

    Raises DevError if they contradict each other.
    """
    tool = cache_folder() / "uv"
    with setting_up():
        ensure_venv()
        run_steps([Step("uv, which chooses the versions", ("--upgrade", "--target", str(tool), "uv"))])
    with tempfile.TemporaryDirectory() as folder:
        wanted, chosen = Path(folder) / "wanted.in", Path(folder) / "chosen.txt"
        lines = [line for file in REQUIREMENTS for line in file.read_text(encoding="utf-8").splitlines()]
        wanted.write_text("\n".join([*lines, *open_requirements(map(requirement_lines, hosts))]), encoding="utf-8")
        command = [str(venv_python()), "-m", "uv", "pip", "compile", "--quiet", "--universal"]
        command += ["--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate", "--no-emit-index-url"]
        command += [str(wanted), "-o", str(chosen)]
        found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tool)}, capture_output=True, text=True)
        if found.returncode != 0:
            raise DevError(f"uv could not choose versions:\n{found.stderr.strip()}")
        versions = chosen.read_text(encoding="utf-8")
    CONSTRAINTS.write_text(HEADER + versions, encoding="utf-8")
    say(f"{len(versions.splitlines())} versions for {', '.join(map(str, hosts))} are in {CONSTRAINTS}")


def open_requirements(of_hosts: Iterable[Sequence[str]]) -> list[str]:
    """What hosts require and none of them pins: a pin of one would contradict that of another."""
    lines = [re.sub(r"\s*#.*", "", line).strip() for lines in of_hosts for line in lines]
    pinned = {normal_name(line) for line in lines if "==" in line}
    return sorted({line for line in lines if line and normal_name(line) not in pinned})
