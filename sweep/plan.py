"""The rows of a sweep: the product of all axes, each row a graph with other values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError, what_there_is
from .graph import digest
from .options import read_values, spec_of
from .values import MOST, Axis, read_axis
from .where import Where

if TYPE_CHECKING:
    from ..demo.client import Graph, Json

SEEDS = ("seed", "noise_seed")


class Row(NamedTuple):
    """One prompt: its graph's hash, the value of each setting, and the graph."""

    key: str
    values: tuple[Json, ...]
    graph: Graph


class Plan(NamedTuple):
    """The settings by the names that the person gave them, the --set option of each, and the rows."""

    labels: tuple[str, ...]
    axes: tuple[int, ...]
    rows: tuple[Row, ...]

    def varied(self) -> list[int]:
        """The settings of which the rows have more than one value."""
        return [place for place in range(len(self.labels)) if len(self.values_of(place)) > 1]

    def values_of(self, place: int) -> list[Json]:
        """The values of a setting, in the order of the rows."""
        return list({repr(row.values[place]): row.values[place] for row in self.rows}.values())


def read_axes(graph: Graph, texts: Sequence[str]) -> list[Axis]:
    """What the --set options say. Raises SweepError if one does not fit the workflow, or if two set the same input."""
    axes = [read_axis(graph, text) for text in texts]
    owners: dict[tuple[str, str], str] = {}
    for where in _wheres(axes):
        for place in where.places:
            if place in owners:
                raise SweepError(
                    f"{owners[place]} and {where.label} set the same input, {place.name} of {place.node_id}"
                )
            owners[place] = where.label
    return axes


def make_plan(graph: Graph, axes: Sequence[Axis], object_info: Mapping[str, Json]) -> Plan:
    """The rows. Equal ones count once. Raises SweepError if a node does not take one of its values."""
    steps = [list(chain.from_iterable(_steps(graph, axis, text, object_info) for text in axis.texts)) for axis in axes]
    count = math.prod(map(len, steps))
    if count > MOST:
        raise SweepError(f"these are {count} prompts; a sweep has at most {MOST}")
    wheres = _wheres(axes)
    rows: dict[str, Row] = {}
    for combination in product(*steps):
        values = tuple(chain.from_iterable(combination))
        changed = with_values(graph, wheres, values)
        key = digest(changed)
        rows.setdefault(key, Row(key, values, changed))
    numbers = tuple(number for number, axis in enumerate(axes) for _ in axis.wheres)
    return Plan(tuple(where.label for where in wheres), numbers, tuple(rows.values()))


def _wheres(axes: Iterable[Axis]) -> list[Where]:
    return [where for axis in axes for where in axis.wheres]


def _steps(graph: Graph, axis: Axis, texts: Sequence[str], object_info: Mapping[str, Json]) -> list[tuple[Json, ...]]:
    """The steps along an axis that a row of texts stands for: one, or more if the only text is a range."""
    columns = [_values(graph, where, text, object_info) for where, text in zip(axis.wheres, texts, strict=True)]
    if len(columns) > 1 and any(len(column) > 1 for column in columns):
        raise SweepError(f"a table has one value in each cell, found a range among {', '.join(texts)}")
    return list(product(*columns))


def _values(graph: Graph, where: Where, text: str, object_info: Mapping[str, Json]) -> list[Json]:
    """The values of a text, read as each of the places demands. They have to agree."""
    found = []
    for node_id, name in where.places:
        class_type = graph[node_id]["class_type"]
        check_class(object_info, class_type)
        spec = spec_of(object_info, class_type, name)
        found.append(read_values(spec, graph[node_id]["inputs"][name], text, where.label))
    if any(values != found[0] for values in found):
        raise SweepError(f"{where.label}: {text} is not the same value at each of these inputs")
    return found[0]


def check_class(object_info: Mapping[str, Json], class_type: str) -> None:
    """Raises SweepError if the server has no node of that class."""
    if class_type not in object_info:
        raise SweepError(f"that ComfyUI has no node {class_type}; {what_there_is(class_type, list(object_info))}")


def with_values(graph: Graph, wheres: Sequence[Where], values: Sequence[Json]) -> Graph:
    """The graph with a value at each place. What does not change is shared with the original."""
    changed = dict(graph)
    for where, value in zip(wheres, values, strict=True):
        for node_id, name in where.places:
            node = changed[node_id]
            changed[node_id] = {**node, "inputs": {**node["inputs"], name: value}}
    return changed


def seeds(graph: Graph) -> list[int]:
    """The seeds of a graph, each once."""
    found = [node["inputs"].get(name) for node in graph.values() for name in SEEDS]
    return list(dict.fromkeys(seed for seed in found if isinstance(seed, int)))
