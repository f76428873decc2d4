"""The folders of the pack's files.

They are added to the host's table of folders. Nothing is removed that the host, another pack or a user's settings put
there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

NETWORKS = frozenset(folder_paths.supported_pt_extensions)


def files_in(folder: str) -> list[str]:
    """Returns the names of the files that a loader offers."""
    return folder_paths.get_filename_list(folder)


def folders_in(folder: str, file: str) -> list[str]:
    """Returns the names of the folders among a loader's files that hold a file of this name."""
    parents = (Path(name).parent for name in files_in(folder) if Path(name).name == file)
    return sorted(str(parent) for parent in parents if parent != Path("."))


def path_of(folder: str, name: str) -> Path:
    """Returns the path of a file in the folder's search paths.

    Raises ValueError if it is not there.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"{name} is not in the {folder} folders. Put it there or choose one of the list.")
    return Path(path)


def output_folder(folder: str) -> Path:
    """Returns the folder that a save node of the pack writes to."""
    return Path(folder_paths.get_output_directory()) / folder


def models_folder(folder: str) -> Path:
    """Returns the folder in which the host keeps model files of a kind."""
    return Path(folder_paths.models_dir) / folder


def register(folder: str, paths: Iterable[Path], extensions: frozenset[str] = NETWORKS) -> None:
    """Adds search paths to a folder of the host's table. The folder is added if the table lacks it.

    The extensions are added to those of the folder. If it has none, it lists every file and stays so.
    """
    known = folder in folder_paths.folder_names_and_paths
    for path in paths:
        folder_paths.add_model_folder_path(folder, str(path))
    allowed = folder_paths.folder_names_and_paths[folder][1]
    if allowed or not known:
        allowed.update(extensions)
