"""Sweeps on servers of their own and on a real Ray, with losses on the way; `dev.py test --full` runs them."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil", reason="processes are found with psutil (requirements-dev.txt)")

from reins.demo.host import Host, HostSettings  # noqa: E402
from reins.sweep.folders import PREFIX  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402
from reins.tests.helpers.sweep_runs import SweepRun, pixels, table  # noqa: E402

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not os.environ.get("REINS_FULL"), reason="takes minutes; --full runs it"),
]
SETTINGS = ("PAG.scale=0,0.7,2,4", "24.seed=0:10")
NAMES = ("PAG.scale", "24.seed")
COUNT = 40
RAY = ("--ray", "local", "--cores", "1")


def has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


needs_ray = pytest.mark.skipif(not has_ray(), reason="needs Ray: python3 dev.py ray --version installs it")


def local() -> tuple[str, ...]:
    return ("--comfy", str(host_folder()))


def start(out: Path, engine: tuple[str, ...], *settings: str) -> SweepRun:
    return SweepRun(host_folder(), out, engine, settings or SETTINGS)


@pytest.fixture(scope="module")
def of_one_server(tmp_path_factory) -> dict[tuple[str, ...], str]:
    """The pixels of each row, of a local server that was killed on the way."""
    out = tmp_path_factory.mktemp("local") / "sweep"
    with start(out, local()) as run:
        run.wait_for(5)
        (server,) = run.servers()
        server.kill()
        run.wait_for(10)
        (other,) = run.servers()
        assert other.pid != server.pid
        assert run.end() == 0, run.said()
    assert "40 of 40 prompts" in run.said()
    return pixels(out, *NAMES)


def test_a_killed_server_is_started_again_and_no_row_is_lost(of_one_server):
    assert len(of_one_server) == COUNT
    assert len(set(of_one_server.values())) == COUNT


def test_a_driver_that_is_killed_or_interrupted_leaves_no_server_and_goes_on_later(of_one_server, tmp_path):
    out = tmp_path / "sweep"
    with start(out, local()) as run:
        run.wait_for(3)
        run.descendants()
        run.process.kill()
        run.wait_until_all_are_gone()
    with start(out, local()) as run:
        run.wait_for(8)
        run.descendants()
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
        run.wait_until_all_are_gone()
    assert "interrupted; run the same command again" in run.said()
    done = len(table(out))
    assert 8 <= done < COUNT
    with start(out, local()) as run:
        assert run.end() == 0
    assert f"; {done} are done already" in run.said()
    assert pixels(out, *NAMES) == of_one_server


@needs_ray
def test_ray_gives_the_pixels_of_one_server_though_server_worker_and_driver_are_killed(of_one_server, tmp_path):
    out = tmp_path / "sweep"
    with start(out, RAY) as run:
        run.wait_for(6)
        assert len(run.servers()) == len(run.workers()) == 2
        run.servers()[0].kill()
        run.wait_for(14)
        run.workers()[-1].kill()
        run.wait_for(22)
        run.descendants()
        run.process.kill()
        run.wait_until_all_are_gone()
    with start(out, RAY) as run:
        assert run.end() == 0, run.said()
        said = run.said()
    assert "2 workers" in said
    assert "Traceback" not in said
    assert pixels(out, *NAMES) == of_one_server
    assert {row["worker"].split(" on ")[0] for row in table(out)} == {"worker 1", "worker 2"}


@needs_ray
def test_ray_keeps_the_error_of_a_node_and_ends_its_servers_on_ctrl_c(tmp_path):
    out = tmp_path / "sweep"
    settings = ("PAG.layers=u2,nonsense", "24.seed=0:2")
    with start(out, RAY, *settings) as run:
        assert run.end() == 1
    errors = [row["error"] for row in table(out)]
    assert [bool(error) for error in errors] == [False, False, True, True]
    assert "node 10 (Reins_PerturbedAttentionGuidance): " in errors[2]
    assert "2 prompts failed twice" in run.said()
    with start(out, RAY) as run:
        run.wait_for(6)
        run.descendants()
        folders = {
            Path(part) for each in run.servers() for part in each.cmdline() if Path(part).name.startswith(PREFIX)
        }
        assert len(folders) == 2
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
        run.wait_until_all_are_gone()
    assert not any(folder.exists() for folder in folders)


@needs_ray
def test_ray_refuses_a_wrong_option_and_names_each_worker_that_lacks_a_model(tmp_path):
    with start(tmp_path / "option", RAY, "24.sampler_name=eulr") as run:
        assert run.end() == 2
    assert "24.sampler_name has no option eulr; there are euler" in run.said()
    with SweepRun(host_folder(), tmp_path / "model", RAY, ["20.seed=0:2"], ["controlnext_sd15"]) as run:
        assert run.end() == 2
    for number in (1, 2):
        assert re.search(rf"worker {number} on \S+ has no controlnext-sd15-pose\.safetensors for Reins_Co", run.said())
    assert not list(tmp_path.rglob("rows"))


def test_two_servers_by_their_urls_share_the_rows(of_one_server, tmp_path):
    out, hosts = tmp_path / "sweep", [HostSettings(host_folder(), tmp_path / name) for name in ("one", "two")]
    with Host(hosts[0]) as one, Host(hosts[1]) as two, start(out, ("--url", one.url, "--url", two.url)) as run:
        run.wait_for(30)
        two.kill()
        assert run.end() == 0, run.said()
    assert pixels(out, *NAMES) == of_one_server
    shares = Counter(row["worker"] for row in table(out))
    assert set(shares) == {one.url, two.url}
    assert min(shares.values()) > 5
    assert "1 of 2 workers" in run.said()
