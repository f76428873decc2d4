"""Reads the API form of the example workflows and fits them to the checkpoint at hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

from .client import Graph

API_FOLDER = Path(__file__).resolve().parent / "api"
CHECKPOINT_LOADER = "CheckpointLoaderSimple"
EXAMPLE_CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # what the example workflows name

SMALL_PIXELS = 128
FEW_STEPS = 6


class UnknownWorkflow(ValueError):
    """A name that has no file in demo/api."""


def load_graphs(only: Iterable[str] | None = None, folder: Path = API_FOLDER) -> dict[str, Graph]:
    """The graphs by name, all of them or those named."""
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    names = list(files) if only is None else list(only)
    if unknown := [name for name in names if name not in files]:
        raise UnknownWorkflow(f"no workflow called {', '.join(unknown)}; there are {', '.join(files) or 'none'}")
    return {name: json.loads(files[name].read_text(encoding="utf-8")) for name in names}


def needs_checkpoint(graph: Graph) -> bool:
    return any(node["class_type"] == CHECKPOINT_LOADER for node in graph.values())


def with_checkpoint(graph: Graph, name: str) -> Graph:
    """A copy whose checkpoint loaders name this file."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if node["class_type"] == CHECKPOINT_LOADER:
            node["inputs"]["ckpt_name"] = name
    return graph


def shrunk(graph: Graph, pixels: int = SMALL_PIXELS, steps: int = FEW_STEPS) -> Graph:
    """A copy with small pictures and few steps: on a model without weights more of either shows nothing more."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        limits = {"steps": steps} if "Sampler" in node["class_type"] else {}
        if node["class_type"] == "EmptyLatentImage":
            limits = {"width": pixels, "height": pixels}
        for name, limit in limits.items():
            if isinstance(node["inputs"].get(name), int):  # not a link to another node
                node["inputs"][name] = min(node["inputs"][name], limit)
    return graph
