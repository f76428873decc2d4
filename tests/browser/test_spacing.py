"""Moving nodes apart and leading wires round groups, on small graphs whose answer can be counted."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from reins.tests.browser.rectangles import Rectangle, faults, group_rectangle, members, saved_rectangle
from reins.tests.browser.spacing import spaced
from reins.tests.browser.wires import CELL, crossed, routed, wires

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
SIZE = (200, 100)


def node(number: int, x: float, y: float) -> dict:
    sockets = {"inputs": [{"name": "image"}], "outputs": [{"name": "IMAGE"}]}
    return {"id": number, "type": "Picture", "pos": [x, y], "size": list(SIZE), **sockets}


def graph(*nodes: dict, groups=(), links=()) -> dict:
    boxes = [{"title": title, "bounding": list(bounding)} for title, *bounding in groups]
    return {"nodes": list(nodes), "groups": boxes, "links": list(links), "extra": {}}


def rooms(workflow: dict, **more: tuple[float, float]) -> dict[str, Rectangle]:
    """As saved, but wider and higher for the nodes in `more`."""
    found = {}
    for content in workflow["nodes"]:
        wider, higher = more.get(f"n{content['id']}", (0, 0))
        found[str(content["id"])] = Rectangle(0, -30, SIZE[0] + wider, SIZE[1] + higher)
    return found


def shown(workflow: dict, needed: dict[str, Rectangle]) -> dict[str, Rectangle]:
    return {
        str(content["id"]): Rectangle(
            *(edge + content["pos"][i % 2] for i, edge in enumerate(needed[str(content["id"])]))
        )
        for content in workflow["nodes"]
    }


def places(workflow: dict) -> list[list[float]]:
    return [content["pos"] for content in workflow["nodes"]]


TABLE = graph(
    node(1, 0, 0), node(2, 0, 150), node(3, 300, 0), node(4, 300, 150),
    groups=[("upper right", 280, -70, 240, 190)],
)  # fmt: skip


def test_a_graph_that_has_room_stays_as_it_is():
    assert spaced(TABLE, rooms(TABLE)) == TABLE


def test_a_higher_node_moves_what_lies_below_and_its_whole_row():
    workflow = spaced(TABLE, rooms(TABLE, n1=(0, 40)))
    assert places(workflow) == [[0, 0], [0, 190], [300, 0], [300, 190]]


def test_a_wider_node_moves_the_columns_to_its_right_and_their_groups():
    workflow = spaced(TABLE, rooms(TABLE, n2=(130, 0)))
    assert places(workflow) == [[0, 0], [0, 150], [370, 0], [370, 150]]  # 330, a gap of 20, and the group of 20
    assert workflow["groups"][0]["bounding"] == [350, -70, 240, 190]


def test_a_group_grows_with_its_nodes_and_pushes_what_lies_below():
    needed = rooms(TABLE, n3=(20, 100))
    workflow = spaced(TABLE, needed)
    assert workflow["groups"][0]["bounding"] == [280, -70, 260, 290]
    assert places(workflow)[3] == [300, 250]
    assert faults(workflow, shown(workflow, needed)) == []
    assert faults(TABLE, shown(TABLE, needed)) != []


def test_spacing_twice_is_spacing_once():
    needed = rooms(TABLE, n1=(30, 70), n3=(20, 100))
    once = spaced(TABLE, needed)
    assert spaced(once, needed) == once


LINE = graph(
    node(1, 0, 0), node(2, 400, 0), node(3, 800, 0),
    groups=[("between", 360, -80, 280, 220)], links=[[1, 1, 0, 3, 0, "IMAGE"], [2, 1, 0, 2, 0, "IMAGE"]],
)  # fmt: skip


def test_a_wire_that_crosses_a_group_of_others_is_led_round_it():
    boxes = shown(LINE, rooms(LINE))
    through = {wire.link: crossed(wire, LINE["groups"], members(LINE)) for wire in wires(LINE, boxes)}
    assert through == {1: ["between"], 2: []}
    extra = routed(LINE, boxes)["extra"]
    assert [entry["linkIds"] for entry in extra["reroutes"]] == [[1]] * len(extra["reroutes"])
    path = [entry["pos"] for entry in extra["reroutes"]]
    assert all(y < -80 or y > 140 for x, y in path if 360 < x < 640)
    assert min(y for _, y in path) < -80 or max(y for _, y in path) > 140
    assert all(x % CELL == y % CELL == CELL / 2 for x, y in path)
    chain = [entry["id"] for entry in extra["reroutes"]]
    assert [entry.get("parentId") for entry in extra["reroutes"]] == [None, *chain[:-1]]
    assert extra["linkExtensions"] == [{"id": 1, "parentId": chain[-1]}]


def test_a_graph_without_such_a_wire_gets_no_reroute():
    assert routed(TABLE, shown(TABLE, rooms(TABLE))) == TABLE


def test_groups_that_ended_together_still_do():
    pair = graph(node(1, 0, 0), node(2, 300, 0), groups=[("left", -20, -70, 240, 190), ("right", 280, -70, 240, 190)])
    workflow = spaced(pair, rooms(pair, n2=(0, 50)))
    assert [group["bounding"] for group in workflow["groups"]] == [[-20, -70, 240, 240], [280, -70, 240, 240]]


@pytest.mark.parametrize("name", ["demo_everything", "demo_ip_adapter_regions", "everything_sd15", "unclip_sd21"])
def test_no_wire_of_an_example_with_reroutes_crosses_a_group_of_others(name):
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    reroutes = {entry["id"]: entry for entry in workflow["extra"]["reroutes"]}
    last = {entry["id"]: entry["parentId"] for entry in workflow["extra"]["linkExtensions"]}
    boxes = {str(content["id"]): saved_rectangle(content) for content in workflow["nodes"]}
    for wire in wires(workflow, boxes):
        if wire.link not in last:
            assert crossed(wire, workflow["groups"], members(workflow)) == []
            continue
        path, number = [wire.end], last[wire.link]
        while number is not None:
            assert wire.link in reroutes[number]["linkIds"]
            path.append(tuple(reroutes[number]["pos"]))
            number = reroutes[number].get("parentId")
        for group, ids in zip(workflow["groups"], members(workflow), strict=True):
            if wire.origin[0] not in ids and wire.target not in ids:
                assert not any(group_rectangle(group).holds(Rectangle(*at, *at), 0) for at in between(path))


def between(path: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along straight lines from each place to the next."""
    share = [i / 20 for i in range(21)]
    return [(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for a, b in pairwise(path) for t in share]
