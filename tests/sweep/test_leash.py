"""The leash: a server ends with the process that started it, also if that one is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil", reason="processes are found with psutil (requirements-dev.txt)")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="servers have no leash on Windows")

LEASH = Path(__file__).parents[2] / "demo" / "leash.py"
SERVER = """
import os, sys, time
assert __name__ == "__main__" and sys.path[0] == os.getcwd()
open(sys.argv[1], "w").write(f"{os.getpid()} {sys.argv}")
if "--end" in sys.argv: sys.exit(7)
time.sleep(60)
"""
STARTER = """
import subprocess, sys, time
server = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "main.py").write_text(SERVER, encoding="utf-8")
    return [str(LEASH), "main.py", str(tmp_path / "pid")]


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text().split()[0])


def test_a_server_ends_if_its_starter_is_killed(server, tmp_path):
    with subprocess.Popen([sys.executable, "-c", STARTER, *server], cwd=tmp_path) as starter:
        found = psutil.Process(pid_in(tmp_path / "pid"))
        starter.kill()
    assert psutil.wait_procs([found], timeout=10)[1] == []


def test_a_script_on_the_leash_has_its_arguments_and_its_exit_code(server, tmp_path):
    with subprocess.Popen([sys.executable, *server, "--end"], cwd=tmp_path, stdin=subprocess.PIPE) as found:
        assert found.wait(20) == 7
    assert "['main.py'," in (tmp_path / "pid").read_text()
