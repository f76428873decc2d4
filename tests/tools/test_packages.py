"""pip: what of its words is shown, what is asked before the first download, and what a failure leaves."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from reins.tools import packages
from reins.tools.packages import PipWatch, Step
from reins.tools.screen import DevError


@pytest.fixture
def own_index(cache, this_pip, monkeypatch):
    """Lets a test say which package index pip asks, whatever this machine's settings are."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_DIRS", os.devnull)
    return lambda index: monkeypatch.setenv("PIP_INDEX_URL", index)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("http://127.0.0.1:9/simple", r"^the package registry cannot be reached: \w+"),
        ("https://nowhere.invalid/simple", r"^there is no network: the name of the package registry"),
    ],
)
def test_a_missing_network_is_named_after_one_try(own_index, index, said):
    own_index(index)
    with pytest.raises(DevError, match=said):
        packages.check_registry("torch==2.11.0")


@pytest.fixture
def an_index(own_index, tmp_path):
    """An index with pack 1.0 for every system, and pack 2.0 for a system that nobody has."""
    folder = tmp_path / "simple" / "pack"
    folder.mkdir(parents=True)
    names = ("pack-1.0-py3-none-any.whl", "pack-2.0-cp399-cp399-win_amd64.whl")
    folder.joinpath("index.html").write_text("".join(f'<a href="{name}">{name}</a>' for name in names))
    own_index((tmp_path / "simple").as_uri())


def test_a_version_that_exists_for_this_python_passes(an_index):
    packages.check_registry("pack==1.0")


def test_a_version_without_a_file_for_this_python_is_named_before_anything_is_downloaded(an_index):
    with pytest.raises(DevError, match=r"^there is no pack 2\.0 for Python 3\.\d+ on this system .+ has 1\.0"):
        packages.check_registry("pack==2.0")


def test_pip_does_not_follow_settings_that_lead_elsewhere(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_DRY_RUN", "PIP_CONSTRAINT"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    environment = packages.pip_environment()
    assert "elsewhere" not in environment.values()
    assert environment["PIP_USER"] == "0"
    assert environment["PIP_INDEX_URL"] == "kept"


def test_a_failed_step_says_what_to_do_and_keeps_what_came_before(cache, this_pip):
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
    assert [path.name for path in cache.iterdir()] == ["setup.log"]  # and no scratch folder


def test_an_interrupted_set_up_says_that_it_goes_on_from_there(monkeypatch, capsys):
    def interrupt(arguments, doing, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "run_pip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        packages.run_steps([Step("torch", ())])
    assert "interrupted in step 1 of 1, torch. Run the same command again: it goes on" in capsys.readouterr().out


def test_the_line_of_progress_names_the_package_and_its_megabytes(cache):
    watch, log = PipWatch("step 2 of 9, torch"), io.StringIO()
    for text, shown in (
        ("Collecting torch==2.11.0 (from -r x)", "looking at torch"),
        ("  Downloading torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.6 MB)", "torch 2.11.0, 530.6 MB"),
        ("Progress 0 of 530600000", "torch 2.11.0, 0.0 of 530.6 MB"),
        ("Progress 412000000 of 530600000", "torch 2.11.0, 412.0 of 530.6 MB"),
        ("  Using cached numpy-2.4.6-cp311-cp311-any.whl (16.9 MB)", "numpy 2.4.6, 16.9 MB"),
        ("", "numpy 2.4.6, 16.9 MB"),
        ("  Downloading https://an.index/a/b/einops-0.8.2-py3-none-any.whl (64 kB)", "einops 0.8.2, 64 kB"),
        ("Installing collected packages: mpmath, torch", "unpacking 2 packages"),
        ("Installing collected packages: torch", "unpacking torch"),
    ):
        watch.read(text, log)
        assert watch.text() == f"step 2 of 9, torch: {shown}"
    assert "Progress" not in log.getvalue()
    assert log.getvalue().count("\n") == 6


def test_the_reason_of_a_broken_connection_is_among_the_errors(cache):
    watch = PipWatch("step 1 of 1, torch")
    watch.read("WARNING: Retrying (Retry(total=0)) after connection broken by 'it'", io.StringIO())
    watch.read("ERROR: No matching distribution found for torch", io.StringIO())
    assert "connection broken by 'it'" in watch.errors()
    assert "No matching distribution" in watch.errors()


def test_the_line_moves_on_while_pip_is_silent():
    class Silent:
        def __iter__(self):
            time.sleep(1.3)
            yield b"at last\n"

    assert list(packages._lines(Silent())) == ["", "at last"]


@pytest.mark.parametrize(("version", "counts"), [("23.2.1", False), ("24.0", False), ("24.1", True), ("26.3", True)])
def test_bytes_are_asked_for_if_pip_can_count_them_and_its_settings_stay_out(version, counts, cache, monkeypatch):
    started = []

    class Pip:
        stdout, returncode = (), 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setenv("PIP_TARGET", "elsewhere")
    monkeypatch.setattr(packages, "installed_packages", lambda: {"pip": version})
    monkeypatch.setattr(packages, "start_child", lambda *arguments, **_: started.append(arguments) or Pip())
    packages.run_steps([Step("torch", ("torch",))])
    ((command, environment),) = started
    assert ("raw" in command) == counts
    assert command[1:5] == ["-m", "pip", "install", "torch"]
    assert "PIP_TARGET" not in environment
    assert Path(environment["TMPDIR"]).parent == cache
