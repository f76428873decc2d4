"""`dev.py sweep` and `dev.py ray`: what they start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reins.tests.tools.places import ROOT
from reins.tools import commands, hosts, sweeping

SCRIPT = str(ROOT / "sweep" / "run.py")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Runs dev.py with arguments; returns its exit code, and notes the command and the environment that it added."""
    notes = []
    host = hosts.Host(tmp_path / "ComfyUI", (0, 30, 0), "cached")
    monkeypatch.setattr(commands.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sweeping, "newest_host", lambda: host)
    monkeypatch.setattr(sweeping, "python_for", lambda host, modules: Path("python"))
    monkeypatch.setattr(sweeping, "python_with_ray", lambda host: Path("python-with-ray"))
    monkeypatch.setattr(sweeping, "run_child", lambda command, **extra: notes.append((command, extra)) or 0)
    for name in ("OMP_NUM_THREADS", *sweeping.OF_RAY):  # Ray sets some of its own in this process
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
        return commands.main()

    return run, notes, host


def test_a_sweep_runs_on_a_server_of_its_own(started):
    run, notes, host = started
    assert run("sweep", "demo_scene", "--set", "a.b=1", "--set", "c.d=0:4") == 0
    ((command, extra),) = notes
    assert command[:3] == ["python", SCRIPT, "demo_scene"]
    assert command[3:] == [
        "--out", str(ROOT / "output" / "sweep" / "demo_scene"), "--set", "a.b=1", "--set", "c.d=0:4",
        "--comfy", str(host.path),
    ]  # fmt: skip
    assert "OMP_NUM_THREADS" in extra


def test_a_sweep_of_running_servers_needs_no_host_of_ours(started, monkeypatch):
    run, notes, _ = started
    monkeypatch.setattr(sweeping, "newest_host", lambda: pytest.fail("not needed"))
    assert run("sweep", "demo_scene", "--url", "http://a:1", "--url", "http://b:2") == 0
    ((command, extra),) = notes
    assert command[-4:] == ["--url", "http://a:1", "--url", "http://b:2"]
    assert extra == {}


@pytest.mark.parametrize(
    ("arguments", "address"), [(("--ray",), "local"), (("--ray", "10.0.0.1:6379"), "10.0.0.1:6379")]
)
def test_a_sweep_on_ray_has_the_python_with_ray_and_tells_workers_where_comfyui_is(arguments, address, started):
    run, notes, host = started
    assert run("sweep", "demo_scene", *arguments, "--cores", "2") == 0
    ((command, extra),) = notes
    assert command[0] == "python-with-ray"
    assert command[-4:] == ["--ray", address, "--cores", "2"]
    assert extra["COMFYUI_PATH"] == str(host.path)
    assert extra["RAY_USAGE_STATS_ENABLED"] == "0"
    assert extra["RAY_AUTH_MODE"] == "token"
    assert "OMP_NUM_THREADS" not in extra  # each worker has its share


def test_paths_hold_in_the_folder_of_the_sweep(started, tmp_path, monkeypatch):
    run, notes, _ = started
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn.png").touch()
    assert run("sweep", "drawn.png", "--set", "@prompts.csv", "--out", "there", "--only", "9", "--rows", "a.b") == 0
    ((command, _),) = notes
    assert command[2:9] == [
        str(tmp_path / "drawn.png"), "--out", str(tmp_path / "there"), "--set", f"@{tmp_path / 'prompts.csv'}",
        "--only", "9",
    ]  # fmt: skip
    assert command[9:11] == ["--rows", "a.b"]


def test_the_options_reach_the_script_as_it_reads_them(started):
    pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
    pytest.importorskip("PIL", reason="pictures need Pillow (requirements-dev.txt)")
    from reins.sweep.command import parse

    run, notes, host = started
    run("sweep", "demo_scene", "--set", "a.b=-1,2", "--only", "9", "--rows", "a.b", "--columns", "c.d")
    read = parse(notes[0][0][2:])
    assert (read.graph, read.set, read.only, read.rows, read.columns) == ("demo_scene", ["a.b=-1,2"], "9", "a.b", "c.d")
    assert read.comfy == host.path
    run("sweep", "demo_scene", "--ray", "--cores", "3")
    read = parse(notes[1][0][2:])
    assert (read.ray, read.cores) == ("local", 3)


@pytest.mark.parametrize("arguments", [("--cores", "2"), ("--ray", "--cores", "0")])
def test_cores_are_for_ray_and_a_number(arguments, started, capsys):
    run, notes, _ = started
    assert run("sweep", "demo_scene", *arguments) == 2
    assert "--cores is a number from 1 on, for sweeps with --ray" in capsys.readouterr().out
    assert notes == []


def test_rays_own_command_line_has_all_its_options(started):
    run, notes, host = started
    assert run("ray", "start", "--head", "--port=6379", "--help") == 0
    ((command, extra),) = notes
    assert command == ["python-with-ray", "-m", "ray.scripts.scripts", "start", "--head", "--port=6379", "--help"]
    assert extra["COMFYUI_PATH"] == str(host.path)
