"""dev.py: what it says in the first second, and how its rooms stand."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reins.tests.tools.places import ROOT
from reins.tools import children, commands, environment, hosts, registry

README = (ROOT / "README.md").read_text(encoding="utf-8")
OLD_PYTHON = """
import runpy, sys
sys.version_info, sys.version, sys.argv = (3, 9, 18), "3.9.18 (main)", ["dev.py", "demo"]
runpy.run_path("dev.py", run_name="__main__")
"""


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


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_that_is_none_is_refused_at_once(port, capsys):
    with pytest.raises(SystemExit):
        commands.parser("").parse_args(["serve", f"--port={port}"])
    assert f"a port is a number from 1 to 65535, found {port}" in capsys.readouterr().err


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


def test_the_readme_names_the_hosts_and_sizes_that_the_code_has():
    size = environment.setup_size() if sys.platform == "linux" else environment.SetupSize(3.5, 6.5)
    versions = [host.version for host in registry.REGISTRY_HOSTS]
    assert f"clone of ComfyUI {hosts.HOST_VERSION}" in README
    assert f"ComfyUI {registry.FALLBACK.version} from PyPI" in README
    assert registry.FALLBACK.requirement.replace("==", " ") in README
    assert f"brings {versions[0]}, {versions[1]} and {versions[2]}" in README
    assert f"downloads about {size.download} GB and takes about {size.disk} GB" in README


def test_dev_py_starts_if_python_leaves_the_scripts_folder_out():
    found = subprocess.run([sys.executable, "-I", "dev.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_a_module_of_the_checkout_runs_if_python_leaves_the_current_folder_out(tmp_path):
    python, *arguments = children.module_command(Path(sys.executable), "demo.run")
    found = subprocess.run([python, "-I", *arguments, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert "--comfy" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("demo", "--only", "demo_pag"),
            "there is no workflow demo_pag; there are demo_pag_perturbed_attention, demo_pag_transformer\n",
        ),
        (("demo", "--only", "demo_contrlnext"), "demo_controlnext"),
        (("demo", "--checkpoint", "nowhere.safetensors"), "there is no checkpoint file nowhere.safetensors"),
    ],
)
def test_a_slip_is_named_before_anything_is_set_up(arguments, said, cache, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
    monkeypatch.setattr(commands, "newest_host", lambda: pytest.fail("too late"))
    monkeypatch.setattr(commands.signal, "signal", lambda number, handler: None)
    assert commands.main() == 2
    assert said in capsys.readouterr().out


def test_unknown_arguments_are_refused_and_ctrl_c_has_its_code(monkeypatch, capsys):
    monkeypatch.setattr(commands.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["dev.py", "hosts", "--no-such-option"])
    with pytest.raises(SystemExit):
        commands.main()
    assert "unknown arguments: --no-such-option" in capsys.readouterr().err

    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "command_hosts", interrupt)
    monkeypatch.setattr(sys, "argv", ["dev.py", "hosts"])
    assert commands.main() == 130


def test_a_reader_that_goes_away_is_no_error():
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, 'dev.py', 'hosts'], stdout=subprocess.PIPE, "
    code += "stderr=subprocess.PIPE); p.stdout.close(); print(p.stderr.read().decode())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in found.stdout


def started_by(arguments: list[str], monkeypatch, tmp_path) -> tuple[list[str], dict[str, str]]:
    """The command and the added environment that dev.py would run."""
    started = []
    host = hosts.Host(tmp_path / "ComfyUI", (0, 30, 0), "cached")
    monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
    monkeypatch.setattr(commands.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(commands, "newest_host", lambda: host)
    monkeypatch.setattr(commands, "python_for", lambda host, modules: Path("python"))
    monkeypatch.setattr(commands, "run_child", lambda command, **extra: started.append((command, extra)) or 0)
    assert commands.main() == 0
    return started[0]


@pytest.mark.parametrize(("command", "module"), [("demo", "demo.run"), ("serve", "demo.serve")])
def test_a_server_is_started_on_the_host_with_its_threads(command, module, monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    started, extra = started_by([command], monkeypatch, tmp_path)
    assert repr(module) in started[2]
    assert started[started.index("--comfy") + 1] == str(tmp_path / "ComfyUI")
    assert "OMP_NUM_THREADS" in extra


def test_a_running_comfyui_needs_no_host_of_ours(monkeypatch, tmp_path):
    arguments = ["demo", "--url", "http://127.0.0.1:8188", "--checkpoint", "a name there"]
    started, _ = started_by(arguments, monkeypatch, tmp_path)
    assert "--comfy" not in started
    assert started[started.index("--url") + 1] == "http://127.0.0.1:8188"
    assert started[started.index("--checkpoint") + 1] == "a name there"
