"""What a server must have before the first prompt: the nodes of a workflow, and the models and options it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import what_there_is
from .options import spec_of

if TYPE_CHECKING:
    from ..demo.client import Json
    from .plan import Row


class Need(NamedTuple):
    """A node, and a text that one of its inputs names. Without a name the node alone is meant."""

    class_type: str
    name: str = ""
    text: str = ""


def needs_of(rows: Iterable[Row]) -> list[Need]:
    """Each node and each text of the rows, once."""
    found: dict[Need, None] = {}
    seen: set[int] = set()  # rows share the nodes that do not change
    for row in rows:
        for node in row.graph.values():
            if id(node) in seen:
                continue
            seen.add(id(node))
            found[Need(node["class_type"])] = None
            texts = ((name, value) for name, value in node["inputs"].items() if isinstance(value, str))
            found |= {Need(node["class_type"], name, value): None for name, value in texts}
    return list(found)


def missing(needs: Sequence[Need], object_info: Mapping[str, Json]) -> list[str]:
    """A sentence for each node, file or option that a server lacks."""
    lacks = []
    for need in needs:
        if need.class_type not in object_info:
            if not need.name:
                lacks.append(f"no node {need.class_type}")
            continue
        spec = spec_of(object_info, need.class_type, need.name) if need.name else None
        if spec is not None and spec.choices is not None and need.text not in map(str, spec.choices):
            there = what_there_is(need.text, list(map(str, spec.choices)))
            lacks.append(f"no {need.text} for {need.class_type}.{need.name}; {there}")
    return lacks
