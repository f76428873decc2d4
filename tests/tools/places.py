"""What the tests of dev.py's rooms share: where the checkout is, and folders that look like a ComfyUI."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_host(folder: Path, version: str = "0.30.0") -> Path:
    """A folder with what dev.py reads of a ComfyUI."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("torch\neinops\n", encoding="utf-8")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """Each file below a folder, by its path from there."""
    paths = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
