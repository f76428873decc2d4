"""The room that nodes take on the screen, in the units of the graph, with classic nodes and with Nodes 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .page import Frontend, Json

VUE = "Comfy.VueNodes.Enabled"
MODES = {"classic": {VUE: False}, "vue": {VUE: True}}
TITLE = 30  # above a node's place, in both modes
FIT = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
DRAWN = """count => document.querySelectorAll('.lg-node[data-node-id]').length === count"""
CLASSIC = """() => window.app.graph.nodes.map(node => {
    const [x, y, w, h] = node.getBounding()
    return [String(node.id), [x, y, x + w, y + h]]
})"""
VUE_NODES = """title => [...document.querySelectorAll('.lg-node[data-node-id]')].map(node => {
    const [x, y] = window.app.graph.getNodeById(Number(node.dataset.nodeId)).pos
    return [node.dataset.nodeId, [x, y - title, x + node.offsetWidth, y - title + node.offsetHeight]]
})"""  # not by places on the screen: the camera may still move
DRAWN_MS = 5000


class Rectangle(NamedTuple):
    """Edges, from left to right and from top to bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Rectangle, slack: float = 0.5) -> bool:
        """Whether the two cover each other by more than `slack`."""
        across = self.left < other.right - slack and other.left < self.right - slack
        return across and self.top < other.bottom - slack and other.top < self.bottom - slack

    def holds(self, other: Rectangle, slack: float = 0.5) -> bool:
        """Whether the other lies inside, but for `slack`."""
        across = self.left <= other.left + slack and other.right <= self.right + slack
        return across and self.top <= other.top + slack and other.bottom <= self.bottom + slack

    def round(self, other: Rectangle) -> Rectangle:
        """The smallest one that holds both."""
        low = map(min, self[:2], other[:2])
        return Rectangle(*low, *map(max, self[2:], other[2:]))


def rectangles(editor: Frontend, mode: str) -> dict[str, Rectangle]:
    """What the nodes of the open graph cover, title and pictures included, by their ids."""
    page = editor.page
    page.evaluate(FIT)  # Nodes 2.0 are made as they come into view
    if mode == "vue":
        count = page.evaluate("() => window.app.graph.nodes.length")
        page.wait_for_function(DRAWN, arg=count, timeout=DRAWN_MS)
    found = page.evaluate(VUE_NODES, TITLE) if mode == "vue" else page.evaluate(CLASSIC)
    return {node: Rectangle(*edges) for node, edges in found}


def saved_rectangle(node: Json) -> Rectangle:
    """What a workflow file says of a node's place, with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return Rectangle(x, y - TITLE, x + width, y + height)


def group_rectangle(group: Json) -> Rectangle:
    """What a workflow file says of a group's place."""
    x, y, width, height = group["bounding"]
    return Rectangle(x, y, x + width, y + height)


def members(workflow: Json) -> list[list[str]]:
    """For each group of a workflow the ids of the nodes in it: their saved rectangles have their centre there."""

    def is_in(node: Json, group: Rectangle) -> bool:
        left, top, right, bottom = saved_rectangle(node)
        centre = ((left + right) / 2, (top + bottom) / 2)
        return group.holds(Rectangle(*centre, *centre))

    groups = [group_rectangle(group) for group in workflow["groups"]]
    return [[str(node["id"]) for node in workflow["nodes"] if is_in(node, group)] for group in groups]


def faults(workflow: Json, shown: Mapping[str, Rectangle]) -> list[str]:
    """Nodes that cover each other, nodes that leave their group, and nodes and groups that reach into a group."""
    names = {str(node["id"]): f"{node.get('title') or node['type']} ({node['id']})" for node in workflow["nodes"]}
    found = [f"{names[a]} covers {names[b]}" for a, b in combinations(shown, 2) if shown[a].meets(shown[b])]
    for group, inside in zip(workflow["groups"], members(workflow), strict=True):
        box = group_rectangle(group)
        found += [f"{names[node]} leaves {group['title']}" for node in inside if not box.holds(shown[node])]
        outside = [node for node in shown if node not in inside]
        found += [f"{names[node]} reaches into {group['title']}" for node in outside if box.meets(shown[node])]
    for a, b in combinations(workflow["groups"], 2):
        if group_rectangle(a).meets(group_rectangle(b)):
            found.append(f"{a['title']} covers {b['title']}")
    return found
