"""The pack's folders of files, added without disturbing what the host, another pack or a user's settings made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

NETWORKS = frozenset(folder_paths.supported_pt_extensions)


def files_in(folder: str) -> list[str]:
    """Returns the names that a loader offers."""
    return folder_paths.get_filename_list(folder)


def folders_in(folder: str, file: str) -> list[str]:
    """Returns the names of the folders among a loader's files that hold a file of this name."""
    parents = (Path(name).parent for name in files_in(folder) if Path(name).name == file)
    return sorted(str(parent) for parent in parents if parent != Path("."))


def path_of(folder: str, name: str) -> Path:
    """Returns the file of that name in the folder's search paths, and nowhere else.

    Raises ValueError if it is not there.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"{name} is not in the {folder} folders. Put it there or choose one of the list.")
    return Path(path)


def output_folder(folder: str) -> Path:
    """Returns where a save node of the pack writes."""
    return Path(folder_paths.get_output_directory()) / folder


def models_folder(folder: str) -> Path:
    """Returns where the host keeps files of a kind."""
    return Path(folder_paths.models_dir) / folder


def register(folder: str, paths: Iterable[Path], extensions: frozenset[str] = NETWORKS) -> None:
    """Adds search paths to a folder of the host's list, which is made if there is none.

    An earlier set of extensions grows; an empty one lists every file, so it is left as it is.
    """
    known = folder in folder_paths.folder_names_and_paths
    for path in paths:
        folder_paths.add_model_folder_path(folder, str(path))
    allowed = folder_paths.folder_names_and_paths[folder][1]
    if allowed or not known:
        allowed.update(extensions)
