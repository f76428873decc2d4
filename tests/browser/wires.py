"""Leads the wires of a workflow round the groups that they have nothing to do with, by reroutes between the columns.

A wire's way is the cheapest one on a grid: nodes are closed to it, groups of neither of its ends are dear, and so are
bends and places where another wire lies. Wires of one output share what they can. Reroutes stand at the bends.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .rectangles import Rectangle, group_rectangle, members

if TYPE_CHECKING:
    from .page import Json

CELL = 20
ROUND = 8  # cells outside of all nodes and groups, where wires may go too
BEND, GROUP, TAKEN, OWN = 6.0, 12.0, 4.0, 0.4
FIRST_SLOT, SLOT = 14, 20  # in classic nodes, from a node's place down
SAMPLES = 64

Cell: TypeAlias = tuple[int, int]
Way: TypeAlias = list[Cell]


class Wire(NamedTuple):
    """A link with the places of its ends."""

    link: int
    origin: tuple[str, int]
    target: str
    start: tuple[float, float]
    end: tuple[float, float]


def wires(workflow: Json, shown: Mapping[str, Rectangle]) -> list[Wire]:
    """The links of a workflow, with `shown` as what each node covers."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = []
    for link, origin, output, target, place, _ in workflow["links"]:
        inputs = nodes[target]["inputs"]
        sockets = [i for i, entry in enumerate(inputs) if "widget" not in entry]
        row = sockets.index(place) if place in sockets else len(sockets)
        start = (shown[str(origin)].right, nodes[origin]["pos"][1] + FIRST_SLOT + SLOT * output)
        end = (shown[str(target)].left, nodes[target]["pos"][1] + FIRST_SLOT + SLOT * row)
        found.append(Wire(link, (str(origin), output), str(target), start, end))
    return found


def crossed(wire: Wire, groups: Sequence[Json], inside: Sequence[Sequence[str]]) -> list[str]:
    """The titles of the groups that a wire without reroutes goes through and that hold neither of its ends."""
    (x0, y0), (x1, y1) = wire.start, wire.end
    reach = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 4
    points = []
    for i in range(1, SAMPLES):
        t = i / SAMPLES
        a, b, c, d = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        points.append((a * x0 + b * (x0 + reach) + c * (x1 - reach) + d * x1, (a + b) * y0 + (c + d) * y1))
    others = [
        group for group, ids in zip(groups, inside, strict=True) if wire.origin[0] not in ids and wire.target not in ids
    ]
    return [
        group["title"]
        for group in others
        if any(group_rectangle(group).holds(Rectangle(*at, *at), -2) for at in points)
    ]


def routed(workflow: Json, shown: Mapping[str, Rectangle]) -> Json:
    """A copy of the workflow with reroutes for every wire that would cross a group of others."""
    workflow = json.loads(json.dumps(workflow))
    for name in ("reroutes", "linkExtensions"):
        workflow["extra"].pop(name, None)
    inside = members(workflow)
    grid = Grid(workflow, shown)
    stray = [wire for wire in wires(workflow, shown) if crossed(wire, workflow["groups"], inside)]
    ways = {wire.link: (wire, grid.way(wire)) for wire in sorted(stray, key=lambda wire: (wire.origin, wire.end))}
    reroutes, extensions = _reroutes(ways)
    if reroutes:
        workflow["extra"] |= {"reroutes": reroutes, "linkExtensions": extensions}
    return workflow


class Grid:
    """Where wires may go, and which ways are taken."""

    def __init__(self, workflow: Json, shown: Mapping[str, Rectangle]) -> None:
        self._inside = [set(ids) for ids in members(workflow)]
        groups = [group_rectangle(group) for group in workflow["groups"]]
        self._groups: dict[Cell, list[int]] = defaultdict(list)
        for i, box in enumerate(groups):
            for cell in _cells(box):
                self._groups[cell].append(i)
        self._closed = {cell for box in shown.values() for cell in _cells(box)}
        edge = [*groups, *shown.values()]
        self._low = (_cell(min(box.left for box in edge)) - ROUND, _cell(min(box.top for box in edge)) - ROUND)
        self._high = (_cell(max(box.right for box in edge)) + ROUND, _cell(max(box.bottom for box in edge)) + ROUND)
        self._taken: dict[Cell, set[tuple[str, int]]] = defaultdict(set)

    def way(self, wire: Wire) -> Way:
        """The cheapest way of a wire, from right of its output to left of its input; it is taken from now on.

        Empty if there is none.
        """
        start = (math.floor(wire.start[0] / CELL + 0.5), _cell(wire.start[1]))
        end = (math.ceil(wire.end[0] / CELL - 0.5) - 1, _cell(wire.end[1]))
        free = {i for i, ids in enumerate(self._inside) if wire.origin[0] in ids or wire.target in ids}
        best = {(start, (1, 0)): 0.0}
        came: dict[tuple[Cell, Cell], tuple[Cell, Cell]] = {}
        queue = [(0.0, start, (1, 0))]
        while queue:
            cost, cell, heading = heapq.heappop(queue)
            if cell == end:
                return self._take(wire, _back(came, (cell, heading)))
            if cost > best[cell, heading]:
                continue
            for turn in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                after = (cell[0] + turn[0], cell[1] + turn[1])
                if (turn[0] == -heading[0] and turn[1] == -heading[1]) or not self._is_open(after, end):
                    continue
                price = cost + self._price(after, wire, free) + (BEND if turn != heading else 0.0)
                if price < best.get((after, turn), float("inf")):
                    best[after, turn] = price
                    came[after, turn] = (cell, heading)
                    heapq.heappush(queue, (price, after, turn))
        return []

    def _is_open(self, cell: Cell, end: Cell) -> bool:
        within = all(low <= at <= high for low, at, high in zip(self._low, cell, self._high, strict=True))
        return within and (cell == end or cell not in self._closed)

    def _price(self, cell: Cell, wire: Wire, free: set[int]) -> float:
        taken = self._taken[cell]
        price = OWN if wire.origin in taken else 1.0
        price += TAKEN * len(taken - {wire.origin})
        return price + GROUP * sum(group not in free for group in self._groups.get(cell, ()))

    def _take(self, wire: Wire, way: Way) -> Way:
        for cell in way:
            self._taken[cell].add(wire.origin)
        return way


def _cell(at: float) -> int:
    return int(at // CELL)


def _cells(box: Rectangle) -> list[Cell]:
    """Those whose centre a rectangle covers."""
    across, down = (
        range(math.ceil(low / CELL - 0.5), math.floor(high / CELL - 0.5) + 1)
        for low, high in ((box.left, box.right), (box.top, box.bottom))
    )
    return [(x, y) for x in across for y in down]


def _back(came: Mapping[tuple[Cell, Cell], tuple[Cell, Cell]], last: tuple[Cell, Cell]) -> Way:
    way = [last[0]]
    while last in came:
        last = came[last]
        way.append(last[0])
    return way[::-1]


def _bends(way: Way) -> Way:
    """The cells in which a way turns."""
    around = zip(way, way[1:], way[2:], strict=False)
    return [b for a, b, c in around if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]


def _reroutes(ways: Mapping[int, tuple[Wire, Way]]) -> tuple[list[Json], list[Json]]:
    """Reroutes and the links that use them, as a workflow file has them; wires of one output share a first part."""
    ids: dict[tuple[tuple[str, int], tuple[Cell, ...]], int] = {}
    reroutes: dict[int, Json] = {}
    extensions = []
    for link, (wire, way) in sorted(ways.items()):
        parent = None
        bends = _bends(way)
        for i, cell in enumerate(bends):
            number = ids.setdefault((wire.origin, tuple(bends[: i + 1])), len(ids) + 1)
            place = [cell[0] * CELL + CELL // 2, cell[1] * CELL + CELL // 2]
            entry = reroutes.setdefault(number, {"id": number, "pos": place, "linkIds": []})
            if parent is not None:
                entry["parentId"] = parent
            entry["linkIds"].append(link)
            parent = number
        if parent is not None:
            extensions.append({"id": link, "parentId": parent})
    return list(reroutes.values()), extensions
