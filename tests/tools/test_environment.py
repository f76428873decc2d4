"""The cached environment: which versions, in which steps, and when it is made anew."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from reins.tests.tools.places import make_host
from reins.tools import environment, hosts, pin, venv
from reins.tools.pin import open_requirements
from reins.tools.screen import DevError

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}


def constraint_lines() -> list[Requirement]:
    lines = environment.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_each_required_package_has_one_tested_version_on_every_python_and_system(python, system):
    place = default_environment() | {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": system,
        "platform_system": SYSTEMS[system],
    }  # fmt: skip
    there = [each for each in constraint_lines() if each.marker is None or each.marker.evaluate(place)]
    names = [venv.normal_name(each.name) for each in there]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"==[^,*]+", str(each.specifier)) for each in there)
    lines = [line for file in environment.REQUIREMENTS for line in file.read_text(encoding="utf-8").splitlines()]
    assert {name for line in lines if (name := venv.normal_name(line))} <= set(names)


def test_what_comfyui_pins_itself_is_not_constrained():
    lines = [["frontend==1.1", "numpy", "pillow>=9  # why"], ["frontend==1.2", "kernels>=2"], ["kernels==3", "", "# x"]]
    assert open_requirements(lines) == ["numpy", "pillow>=9"]


def test_a_set_up_installs_the_largest_first_and_the_tested_versions(cache, tmp_path):
    host = hosts.Host(make_host(tmp_path / "host", hosts.HOST_VERSION), hosts.numbers(hosts.HOST_VERSION), "named")
    steps = environment.install_steps([host])
    whats = [step.what for step in steps]
    assert whats[-3:] == ["torch", "what ComfyUI needs", "what the tests need"]
    assert (len(whats) > 10) == (sys.platform == "linux")  # elsewhere torch comes without CUDA's libraries
    assert all(what.startswith(("nvidia-", "triton")) for what in whats[:-3])
    assert all("--constraint" in step.arguments for step in steps[-3:])


def test_a_comfyui_newer_than_the_tested_ones_gets_the_versions_that_pip_chooses(cache, tmp_path, capsys):
    host = hosts.Host(make_host(tmp_path / "host", "99.0"), (99, 0), "named")
    assert not any("--constraint" in step.arguments for step in environment.install_steps([host]))
    assert f"is newer than {hosts.HOST_VERSION}" in capsys.readouterr().out


def test_a_disk_without_room_is_said_with_both_numbers_before_anything_is_installed(cache, monkeypatch, capsys):
    usage = shutil.disk_usage("/")._replace(free=3_000_000_000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: usage)
    needed = environment.setup_size().disk + 1
    with pytest.raises(DevError, match=rf"has 3\.0 GB free, and the set-up needs {needed} GB.+REINS_HOME"):
        environment.check_disk()
    assert f"downloads {environment.setup_size().download} GB" in capsys.readouterr().out


@pytest.fixture
def installs(cache, monkeypatch):
    """What a set-up would install, step by step; the environment itself is made by nobody."""
    steps = []
    monkeypatch.setattr(environment, "ensure_venv", lambda: False)
    monkeypatch.setattr(environment, "check_registry", lambda needed: steps.append(f"asked for {needed}"))
    monkeypatch.setattr(environment, "run_steps", steps.extend)
    present = dict.fromkeys((*environment.PROOF, *environment.CLIENT, "einops", "pip"), "99")
    monkeypatch.setattr(environment, "installed_packages", lambda: present)
    environment.venv_folder().mkdir(parents=True)
    return steps, present


def a_host(tmp_path: Path, version: str) -> hosts.Host:
    folder = tmp_path / f"host-{version}"
    return hosts.Host(folder if folder.exists() else make_host(folder, version), hosts.numbers(version), "cached")


def whats(steps: list) -> list[str]:
    return [step.what for step in steps if not isinstance(step, str)]


def test_a_second_set_up_installs_nothing_and_asks_nobody(installs, tmp_path):
    steps, _ = installs
    host = a_host(tmp_path, "0.30.0")
    environment.set_up([host])
    assert "what ComfyUI needs" in whats(steps)
    assert steps[0] == f"asked for {environment.pinned('torch')}"
    steps.clear()
    assert environment.set_up([host]) == venv.venv_python()
    assert steps == []


def test_the_pins_of_an_older_host_never_replace_those_of_a_newer_one(installs, tmp_path):
    steps, _ = installs
    environment.set_up([a_host(tmp_path, "0.30.0")])
    steps.clear()
    environment.set_up([a_host(tmp_path, "0.3.75")])
    assert steps == []
    environment.set_up([a_host(tmp_path, "0.33.0")])
    assert "what ComfyUI needs" in whats(steps)


def test_changed_requirements_are_installed_again(installs, tmp_path, monkeypatch):
    steps, _ = installs
    host = a_host(tmp_path, "0.30.0")
    environment.set_up([host])
    steps.clear()
    (host.path / "requirements.txt").write_text("torch\neinops\npytest\n", encoding="utf-8")
    environment.set_up([host])
    assert "what ComfyUI needs" in whats(steps)
    steps.clear()
    changed = tmp_path / "constraints.txt"
    changed.write_text(environment.CONSTRAINTS.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    monkeypatch.setattr(environment, "CONSTRAINTS", changed)
    environment.set_up([host])
    assert "what the tests need" in whats(steps)


def test_what_other_hosts_name_is_added(installs, tmp_path):
    steps, _ = installs
    newest, older = a_host(tmp_path, "0.30.0"), a_host(tmp_path, "0.16.3")
    (older.path / "requirements.txt").write_text("torch\nglfw>=2\n# nothing\n", encoding="utf-8")
    environment.set_up([newest, older])
    assert whats(steps)[-1] == "glfw"


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"version": "0.30"}', '{"version": [0, 30]}'])
def test_a_stamp_that_makes_no_sense_is_replaced(installs, tmp_path, stamp):
    steps, _ = installs
    (environment.venv_folder() / environment.STAMP).write_text(stamp, encoding="utf-8")
    environment.set_up([a_host(tmp_path, "0.30.0")])
    assert steps
    assert json.loads((environment.venv_folder() / environment.STAMP).read_text(encoding="utf-8"))["version"] == [
        0,
        30,
        0,
    ]


def test_a_failed_set_up_leaves_no_stamp(installs, tmp_path, monkeypatch):
    def fail(steps):
        raise DevError("pip failed")

    monkeypatch.setattr(environment, "run_steps", fail)
    with pytest.raises(DevError):
        environment.set_up([a_host(tmp_path, "0.30.0")])
    assert environment.read_stamp() == {}


def test_packages_that_pip_put_elsewhere_are_missed(installs, tmp_path):
    _, present = installs
    del present["aiohttp"]
    with pytest.raises(DevError, match=r"pip installed aiohttp elsewhere than in .+pip config list"):
        environment.set_up([a_host(tmp_path, "0.30.0")])
    assert environment.read_stamp() == {}


def test_a_client_gets_three_small_packages_and_no_torch(installs):
    steps, present = installs
    del present["tqdm"]
    with pytest.raises(DevError):
        environment.set_up_client()  # nothing is really installed here
    assert whats(steps) == ["tqdm"]


def test_inside_a_comfyui_its_own_python_runs_and_what_it_lacks_is_named(tmp_path):
    located = hosts.Host(make_host(tmp_path / "host"), (0, 30, 0), "located")
    assert environment.python_for(located, ("json",)) == Path(sys.executable)
    with pytest.raises(DevError, match=r"lacks no_such_module: run dev.py with the Python that runs"):
        environment.python_for(located, ("json", "no_such_module"))


def test_room_and_network_are_asked_for_before_the_first_download(installs, monkeypatch, tmp_path):
    steps, present = installs
    del present["torch"]
    monkeypatch.setattr(environment, "check_disk", lambda: steps.append("room"))
    with pytest.raises(DevError):
        environment.set_up([a_host(tmp_path, "0.30.0")])  # nothing is really installed here
    assert steps[:2] == ["room", f"asked for {environment.pinned('torch')}"]


def test_an_old_pip_is_replaced_first(installs, tmp_path):
    steps, present = installs
    present["pip"] = "23.2.1"
    environment.set_up([a_host(tmp_path, "0.30.0")])
    assert whats(steps)[0] == "a newer pip"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes without CUDA's libraries")
def test_what_an_interrupted_set_up_has_installed_is_not_fetched_again(installs, tmp_path):
    _, present = installs
    before = whats(environment.install_steps([a_host(tmp_path, "0.30.0")]))
    present["nvidia-cublas"] = "13"
    after = whats(environment.install_steps([a_host(tmp_path, "0.30.0")]))
    assert set(before) - set(after) == {"nvidia-cublas"}


def test_versions_are_chosen_for_the_oldest_python_and_every_system(cache, monkeypatch, tmp_path):
    def compile_versions(command, **options):
        assert command[command.index("--python-version") + 1] == "3.10"
        assert "--universal" in command
        wanted, chosen = Path(command[-3]), Path(command[-1])
        assert "einops" in wanted.read_text(encoding="utf-8").splitlines()  # the host's
        chosen.write_text("einops==1\n", encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pin, "ensure_venv", lambda: False)
    monkeypatch.setattr(pin, "run_steps", lambda steps: None)
    monkeypatch.setattr(pin, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(pin.subprocess, "run", compile_versions)
    pin.write_constraints([a_host(tmp_path, "0.30.0")])
    assert (tmp_path / "constraints.txt").read_text(encoding="utf-8") == pin.HEADER + "einops==1\n"


def test_ray_is_installed_when_it_is_first_used_and_said_so(installs, tmp_path, monkeypatch, capsys):
    steps, present = installs
    host = a_host(tmp_path, "0.30.0")
    environment.set_up([host])
    steps.clear()
    (wanted,) = re.findall(r"^ray==\S+$", environment.SWEEP.read_text(encoding="utf-8"), re.MULTILINE)

    def install(chosen):
        steps.extend(chosen)
        present["ray"] = wanted.partition("==")[2]

    monkeypatch.setattr(environment, "run_steps", install)
    assert environment.python_with_ray(host) == venv.venv_python()
    assert steps[0] == f"asked for {wanted}"
    assert whats(steps) == ["Ray"]
    assert f"Ray is used for the first time: installing {wanted} into" in capsys.readouterr().out
    steps.clear()
    environment.python_with_ray(host)
    assert steps == []
    present["ray"] = "1.0"  # all machines of a cluster need the same one
    environment.python_with_ray(host)
    assert whats(steps) == ["Ray"]


def test_inside_a_comfyui_ray_is_installed_by_its_owner(tmp_path, monkeypatch):
    located = hosts.Host(make_host(tmp_path / "host"), (0, 30, 0), "located")
    monkeypatch.setattr(environment, "python_for", lambda host, modules: Path(sys.executable))
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DevError, match=r"lacks ray: run `.+ -m pip install -r .+requirements-sweep\.txt`"):
        environment.python_with_ray(located)


def test_nothing_but_a_sweep_needs_ray():
    lines = [line for file in environment.REQUIREMENTS for line in file.read_text(encoding="utf-8").splitlines()]
    assert "ray" not in map(venv.normal_name, lines)
