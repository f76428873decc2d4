"""Builds of the pack side by side in one process: the one that this bench belongs to, and an older checkout.

The nodes of a build are found by their ids, which never change. Files and folders of the pack do.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import folder_paths
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "Reins_"


class Build(NamedTuple):
    """A build of the pack by a name for tables, with the classes of its nodes by their ids."""

    name: str
    nodes: Mapping[str, type]

    def run(self, node: str, **inputs: Any) -> Any:
        """The first output of a node. Inputs that are not given have the node's defaults.

        Raises MissingInput if this build has not the node, or not an input of it.
        """
        found = self.nodes.get(PREFIX + node)
        if found is None:
            raise MissingInput(f"{self.name} has no node {node}")
        known = {each.id: getattr(each, "default", None) for each in found.define_schema().inputs}
        if missing := inputs.keys() - known.keys():
            raise MissingInput(f"{node} of {self.name} has no input {', '.join(sorted(missing))}")
        defaults = {name: default for name, default in known.items() if default is not None}
        return found.execute(**{**defaults, **inputs}).result[0]


class MissingInput(ValueError):
    """A build that cannot do what is asked for."""


def this_build(name: str = "this build") -> Build:
    """The pack to which the bench belongs."""
    return Build(name, _nodes("reins"))


def older_build(folder: Path, name: str) -> Build:
    """A checkout of the pack in another folder, under a package name for it alone.

    Raises ValueError if the folder holds no pack.
    """
    package = f"reins_{name}"
    if package not in sys.modules:
        source = folder / "__init__.py"
        if not source.is_file():
            raise ValueError(f"--base should name a checkout of this pack, but there is no {source}")
        spec = importlib.util.spec_from_file_location(package, source, submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return Build(name, _nodes(package))


def _nodes(package: str) -> Mapping[str, type]:
    async def listed() -> list[type]:
        extension = await sys.modules[package].comfy_entrypoint()
        return await extension.get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(listed())}


def commit_of(folder: Path) -> str:
    """The first seven digits of the commit that is checked out in a folder, or the folder's name without git."""
    pointer = folder / ".git"
    if pointer.is_file():  # of a work tree
        pointer = Path(pointer.read_text(encoding="utf-8").removeprefix("gitdir: ").strip())
    head = pointer / "HEAD"
    text = head.read_text(encoding="utf-8").strip() if head.is_file() else ""
    if text.startswith("ref: "):
        branch = pointer / text.removeprefix("ref: ")
        text = branch.read_text(encoding="utf-8").strip() if branch.is_file() else ""
    return text[:7] or folder.name


class Shelf:
    """A folder of drawn files, which the loader nodes of all builds find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, kind: str, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Writes a file into the folder of a kind, such as ipadapter, and returns its name."""
        place = self.folder / kind
        place.mkdir(exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(place))
        save_file({key: value.contiguous() for key, value in tensors.items()}, place / name)
        return name


@contextmanager
def shelf() -> Iterator[Shelf]:
    """A shelf for the time of a block."""
    before = {kind: (list(paths), kinds) for kind, (paths, kinds) in folder_paths.folder_names_and_paths.items()}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            yield Shelf(Path(folder))
        finally:
            folder_paths.folder_names_and_paths.update(before)
            folder_paths.filename_list_cache.clear()
