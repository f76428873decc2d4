"""Finds the input that a person means: a node by its title, id or class, and a name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError, what_there_is
from .graph import is_link, title

if TYPE_CHECKING:
    from ..demo.client import Graph

PREFIX = "Reins_"
TOGETHER = "+"  # between places that get the same value


class Place(NamedTuple):
    """One input of one node."""

    node_id: str
    name: str


class Where(NamedTuple):
    """The places that get a value, and what the person called them."""

    label: str
    places: tuple[Place, ...]


def find_where(graph: Graph, label: str) -> Where:
    """The places of NODE.INPUT, or of several that are joined by a plus sign.

    Raises SweepError if a node or an input does not exist, if several nodes fit, or if the input is linked.
    """
    parts = [label] if _fits(graph, label) else label.split(TOGETHER)
    return Where(label, tuple(_place(graph, part.strip()) for part in parts))


def _fits(graph: Graph, label: str) -> bool:
    """Whether a name that has a plus sign in it is one place all the same."""
    node, _, name = label.rpartition(".")
    return any(name in graph[node_id]["inputs"] for node_id in find_nodes(graph, node))


def _place(graph: Graph, text: str) -> Place:
    node, dot, name = text.rpartition(".")
    if not dot or not node or not name:
        raise SweepError(f"{text} is no place in the workflow: write NODE.INPUT, such as KSampler.seed")
    for cut in [place for place, sign in enumerate(text) if sign == "."]:  # names of inputs may have points, too
        if find_nodes(graph, text[:cut]):
            node, name = text[:cut], text[cut + 1 :]
            break
    node_id = one_node(graph, node, name)
    _check_input(graph, node_id, name)
    return Place(node_id, name)


def one_node(graph: Graph, node: str, name: str = "") -> str:
    """The id of the node that is meant, whose input `name` is to be set if there is one.

    Raises SweepError if there is none, or if there are several.
    """
    found = find_nodes(graph, node)
    if not found:
        raise SweepError(f"there is no node {node}; {nodes_in_words(graph)}")
    if len(found) > 1:
        every = TOGETHER.join(f"{node_id}.{name}" for node_id in found)
        named = ", ".join(f"{node_id} ({title(graph, node_id)})" for node_id in found)
        way_out = f"Name one by its id{f', or all by {every}' if name else ''}"
        raise SweepError(f"{node} may be one of {len(found)} nodes: {named}. {way_out}")
    return found[0]


def _check_input(graph: Graph, node_id: str, name: str) -> None:
    inputs = graph[node_id]["inputs"]
    free = [each for each, value in inputs.items() if not is_link(value)]
    node = f"node {node_id} ({title(graph, node_id)})"
    if name not in inputs:
        raise SweepError(f"{node} has no input {name}; {what_there_is(name, free)}")
    if is_link(inputs[name]):
        source = inputs[name][0]
        raise SweepError(
            f"{node}: {name} is linked to node {source} ({title(graph, source) if source in graph else 'missing'}) "
            f"and has no value to set; with a value {what_there_is(name, free)}"
        )


def find_nodes(graph: Graph, name: str) -> list[str]:
    """The ids of the nodes that a name fits.

    A title counts before an id, an id before a class. If none is equal, one of the words of a title or class counts.
    """
    wanted = name.casefold()
    if not wanted:
        return []
    for names in (
        lambda node_id: [title(graph, node_id)],
        lambda node_id: [node_id],
        lambda node_id: [graph[node_id]["class_type"], graph[node_id]["class_type"].removeprefix(PREFIX)],
        lambda node_id: re.findall(r"\w+", f"{title(graph, node_id)} {graph[node_id]['class_type']}"),
    ):
        if found := [node_id for node_id in graph if wanted in map(str.casefold, names(node_id))]:
            return found
    return []


def nodes_in_words(graph: Graph) -> str:
    """The nodes of a graph by id, title and class."""
    named = []
    for node_id, node in graph.items():
        names = dict.fromkeys((title(graph, node_id), node["class_type"]))
        named.append(f"{node_id} ({', '.join(names)})")
    return f"there are {', '.join(named)}"
