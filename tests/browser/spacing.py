"""Moves the nodes of a workflow apart until what they cover on the screen has room.

A node keeps its column, its row and its neighbours: it moves down or to the right, by as little as does. The nodes
of one row (or column) stay in it, and groups follow their nodes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from .rectangles import Rectangle, group_rectangle, members, saved_rectangle

if TYPE_CHECKING:
    from .page import Json

NODE_GAP = 20
GROUP_GAP = 40
MARGIN = 20  # of a group, round its nodes
NOTHING = Rectangle(0, 0, 0, 0)


class Box(NamedTuple):
    """A node, or a group with its nodes: what it covers as saved, its nodes, and how far it reaches beyond them."""

    saved: Rectangle
    nodes: tuple[str, ...]
    margins: Rectangle
    gap: float


class Before(NamedTuple):
    """On one axis: `later` is to have at least this distance from `earlier`, both places as they are saved."""

    earlier: float
    later: float
    distance: float


def spaced(workflow: Json, shown: Mapping[str, Rectangle]) -> Json:
    """A copy of the workflow in which rectangles as large as those in `shown` have room.

    `shown` has for each node its edges relative to the node's place.
    """
    workflow = json.loads(json.dumps(workflow))
    inside = members(workflow)
    saved = [group_rectangle(group) for group in workflow["groups"]]
    places = {str(node["id"]): tuple(node["pos"]) for node in workflow["nodes"]}
    margins = [_margins(*of_group, places, shown) for of_group in zip(workflow["groups"], inside, strict=True)]
    boxes = [Box(saved_rectangle(node), (str(node["id"]),), NOTHING, NODE_GAP) for node in workflow["nodes"]]
    for group, ids, margin in zip(workflow["groups"], inside, margins, strict=True):
        boxes.append(Box(group_rectangle(group), tuple(ids), margin, GROUP_GAP))
    apart = [pair for pair in combinations(boxes, 2) if not set(pair[0].nodes) & set(pair[1].nodes)]
    moved = [_solve(axis, places, apart, shown) for axis in (0, 1)]
    for node in workflow["nodes"]:
        node["pos"] = [moved[axis][node["pos"][axis]] for axis in (0, 1)]
    places = {str(node["id"]): tuple(node["pos"]) for node in workflow["nodes"]}
    for group, ids, margin in zip(workflow["groups"], inside, margins, strict=True):
        group["bounding"] = _bounding(_round(ids, places, shown), margin)
    _align(workflow["groups"], saved)
    return workflow


def _align(groups: Sequence[Json], saved: Sequence[Rectangle]) -> None:
    """Lets groups end together that began and ended together as saved, if no other group is in the way."""
    for axis in (0, 1):
        for i, group in enumerate(groups):
            alike = [j for j, box in enumerate(saved) if box[axis::2] == saved[i][axis::2]]
            start, end = group["bounding"][axis], max(group_rectangle(groups[j])[axis + 2] for j in alike)
            before = group["bounding"][axis + 2]
            if any(groups[j]["bounding"][axis] != start for j in alike):
                continue
            group["bounding"][axis + 2] = end - start
            if any(group_rectangle(group).meets(group_rectangle(other)) for other in groups if other is not group):
                group["bounding"][axis + 2] = before


def _round(ids: Sequence[str], places: Mapping[str, tuple[float, ...]], shown: Mapping[str, Rectangle]) -> Rectangle:
    """The smallest rectangle that holds these nodes as they are shown."""
    boxes = [
        Rectangle(x + left, y + top, x + right, y + bottom)
        for (x, y), (left, top, right, bottom) in ((places[node], shown[node]) for node in ids)
    ]
    return reduce(Rectangle.round, boxes)


def _margins(
    group: Json, ids: Sequence[str], places: Mapping[str, tuple[float, ...]], shown: Mapping[str, Rectangle]
) -> Rectangle:
    """How far a group reaches beyond its nodes, as saved, but never less than MARGIN."""
    box, nodes = group_rectangle(group), _round(ids, places, shown)
    reach = (nodes.left - box.left, nodes.top - box.top, box.right - nodes.right, box.bottom - nodes.bottom)
    return Rectangle(*(max(MARGIN, edge) for edge in reach))


def _bounding(nodes: Rectangle, margin: Rectangle) -> list[float]:
    """Place and size of a group as a workflow file has them."""
    left, top = math.floor(nodes.left - margin.left), math.floor(nodes.top - margin.top)
    return [left, top, math.ceil(nodes.right + margin.right) - left, math.ceil(nodes.bottom + margin.bottom) - top]


def _solve(
    axis: int,
    places: Mapping[str, tuple[float, ...]],
    apart: Iterable[tuple[Box, Box]],
    shown: Mapping[str, Rectangle],
) -> dict[float, float]:
    """Where each place on the axis moves: the least move for which all boxes that this axis parts stay apart."""
    rules: dict[float, list[Before]] = defaultdict(list)
    for first, second in apart:
        a, b = sorted((first, second), key=lambda box: box.saved[axis])
        if _parting_axis(a, b) != axis:
            continue
        gap = min(_distance(a, b, axis), a.gap, b.gap)
        for one in a.nodes:
            for other in b.nodes:
                reach = shown[one][axis + 2] + a.margins[axis + 2] + gap + b.margins[axis] - shown[other][axis]
                rules[places[other][axis]].append(Before(places[one][axis], places[other][axis], reach))
    moved: dict[float, float] = {}
    for place in sorted({place[axis] for place in places.values()}):
        needs = [moved[rule.earlier] + rule.distance for rule in rules[place]]
        moved[place] = max([place, *map(math.ceil, needs)])
    return moved


def _distance(a: Box, b: Box, axis: int) -> float:
    """Between two boxes as saved, negative where they share a part of the axis."""
    return max(b.saved[axis] - a.saved[axis + 2], a.saved[axis] - b.saved[axis + 2])


def _parting_axis(a: Box, b: Box) -> int | None:
    """The axis on which two boxes lie apart, columns before rows; none if they cover each other."""
    return next((axis for axis in (0, 1) if _distance(a, b, axis) >= 0), None)
