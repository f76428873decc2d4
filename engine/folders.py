"""The pack's folders of files, added without disturbing what the host, another pack or a user's settings made.

Importing this module registers them; the host's lists of files come after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"
NETWORKS = frozenset(folder_paths.supported_pt_extensions)
TOKENS = frozenset({".safetensors", ".ipadpt"})


def files_in(folder: str) -> list[str]:
    """The names that a loader offers."""
    return folder_paths.get_filename_list(folder)


def folders_in(folder: str, file: str) -> list[str]:
    """The names of the folders among a loader's files that hold a file of this name."""
    parents = (Path(name).parent for name in files_in(folder) if Path(name).name == file)
    return sorted(str(parent) for parent in parents if parent != Path("."))


def path_of(folder: str, name: str) -> Path:
    """The file of that name in the folder's search paths, and nowhere else. ValueError if it is not there."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"{name} is not in the {folder} folders. Put it there or choose one of the list.")
    return Path(path)


def saved(folder: str) -> Path:
    """Where a save node of the pack writes."""
    return Path(folder_paths.get_output_directory()) / folder


def _models(folder: str) -> Path:
    return Path(folder_paths.models_dir) / folder


def _add(folder: str, paths: Iterable[Path], extensions: frozenset[str]) -> None:
    """An earlier set of extensions grows; an empty one lists every file, so it is left as it is."""
    known = folder in folder_paths.folder_names_and_paths
    for path in paths:
        folder_paths.add_model_folder_path(folder, str(path))
    allowed = folder_paths.folder_names_and_paths[folder][1]
    if allowed or not known:
        allowed.update(extensions)


_add("loras", [DEMO_WEIGHTS / "loras"], NETWORKS)
_add("controlnet", [DEMO_WEIGHTS / "controlnet"], NETWORKS)
_add("controlnext", [_models("controlnext"), DEMO_WEIGHTS / "controlnext"], NETWORKS)
_add("ipadapter", [_models("ipadapter"), DEMO_WEIGHTS / "ipadapter"], NETWORKS)
_add("unicon", [_models("unicon"), DEMO_WEIGHTS / "unicon", saved("unicon")], NETWORKS)
_add("image_tokens", [_models("image_tokens"), saved("image_tokens")], TOKENS)
_add("h_space", [_models("h_space"), DEMO_WEIGHTS / "h_space", saved("h_space")], NETWORKS)
