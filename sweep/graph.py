"""Reads a workflow in the API form: an export, a picture that ComfyUI wrote, or one of the examples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..demo.graphs import API_FOLDER, UnknownWorkflow, load_graphs
from .errors import SweepError, what_there_is

if TYPE_CHECKING:
    from ..demo.client import Graph, Json

PNG = b"\x89PNG\r\n\x1a\n"
EXPORT = "open it in ComfyUI and choose Workflow > Export (API)"
FIELDS = ("class_type", "inputs", "_meta")  # a picture may hold more, which ComfyUI noted while it ran


def read_graph(name: str) -> Graph:
    """The workflow in a file, or the example of that name.

    Raises SweepError if there is neither, or if it is not in the API form.
    """
    path = Path(name)
    if path.is_file():
        content = path.read_bytes()
        return from_picture(content, name) if content.startswith(PNG) else from_text(content, name)
    try:
        return checked(next(iter(load_graphs([name]).values())), name)
    except UnknownWorkflow:
        examples = sorted(file.stem for file in API_FOLDER.glob("*.json"))
        raise SweepError(
            f"there is no file {name} and no example of that name: {what_there_is(name, examples)}"
        ) from None


def from_text(content: bytes, name: str) -> Graph:
    """The workflow of a .json file. Raises SweepError if it is none in the API form."""
    try:
        return checked(json.loads(content.decode("utf-8-sig")), name)
    except ValueError as error:
        raise SweepError(
            f"{name} is neither JSON nor a PNG that ComfyUI wrote ({error}): give an export, made by Export (API)"
        ) from error


def from_picture(content: bytes, name: str) -> Graph:
    """The workflow inside a picture that ComfyUI wrote. Raises SweepError if it has none in the API form."""
    import io

    from PIL import Image

    notes = Image.open(io.BytesIO(content)).info
    if "prompt" in notes:
        return from_text(notes["prompt"].encode(), name)
    if "workflow" in notes:
        raise SweepError(f"{name} has the workflow in the editor's format alone: {EXPORT}")
    raise SweepError(f"{name} has no workflow inside: take a PNG that ComfyUI's Save Image wrote, or an API export")


def checked(graph: Json, name: str) -> Graph:
    """The graph, with what describes it alone. Raises SweepError if it is not in the API form."""
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise SweepError(f"{name} is in the editor's format, which a server does not take: {EXPORT}")
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        raise SweepError(f"{name} is no workflow in the API form: {EXPORT}")
    return {key: {field: node[field] for field in FIELDS if field in node} for key, node in graph.items()}


def leading_to(graph: Graph, node_id: str) -> Graph:
    """The node and those that it needs."""
    wanted, waiting = set(), [node_id]
    while waiting:
        found = waiting.pop()
        if found in graph and found not in wanted:
            wanted.add(found)
            waiting += [value[0] for value in graph[found]["inputs"].values() if is_link(value)]
    return {key: node for key, node in graph.items() if key in wanted}


def is_link(value: Json) -> bool:
    """Whether an input takes what another node returns."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def title(graph: Graph, node_id: str) -> str:
    """What the editor calls the node."""
    node = graph[node_id]
    return node.get("_meta", {}).get("title") or node["class_type"]


def digest(graph: Graph) -> str:
    """The hash of what a graph computes. Titles do not count."""
    computed = {node_id: [node["class_type"], node["inputs"]] for node_id, node in graph.items()}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()
