"""The subgraphs that the node library offers: what they are made of, and what they show outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
CORE = {  # nodes of the host that blueprints use, with their inputs
    "KSampler": {
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise",
    },
    "CLIPVisionLoader": {"clip_name"},
}  # fmt: skip
WAY_IN, WAY_OUT = -10, -20  # what a subgraph calls its two ends
OUTSIDE = {  # what each shows: its inputs with the nodes and inputs that they lead to, and its output
    "Guided sampler (Reins)": (
        {
            "model": ("Reins_PerturbedAttentionGuidance", "model"),
            **{
                name: ("KSampler", name)
                for name in (
                    "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler",
                    "denoise",
                )
            },
            "pag_scale": ("Reins_PerturbedAttentionGuidance", "scale"),
            "interval_start": ("Reins_GuidanceInterval", "start_percent"),
            "interval_end": ("Reins_GuidanceInterval", "end_percent"),
            "rescale": ("Reins_GuidanceRescale", "rescale"),
        },
        "LATENT",
    ),
    "Look from a picture (Reins)": (
        {
            "model": ("Reins_IPAdapterApply", "model"),
            "image": ("Reins_IPAdapterEncode", "image"),
            "clip_name": ("CLIPVisionLoader", "clip_name"),
            "ipadapter_name": ("Reins_IPAdapterLoader", "name"),
            **{
                name: ("Reins_IPAdapterApply", name)
                for name in ("weight", "weight_type", "start_percent", "end_percent")
            },
        },
        "MODEL",
    ),
}  # fmt: skip
FILES = sorted((ROOT / "subgraphs").iterdir())
MARGIN = 20  # between nodes
TITLE = 30  # drawn above a node's place


def read(name):
    """A blueprint, the one node that stands in it, and what is inside."""
    workflow = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    (node,), (inside,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    return workflow, node, inside


def by_id(inside):
    return {node["id"]: node for node in inside["nodes"]}


def links(inside):
    return {link["id"]: link for link in inside["links"]}


def test_the_folder_holds_the_blueprints_and_nothing_else():
    assert [path.name for path in FILES] == [f"{name}.json" for name in sorted(OUTSIDE)]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_blueprint_is_one_node_under_the_name_of_its_file(name):
    workflow, node, inside = read(name)
    assert workflow["links"] == []
    assert node["type"] == inside["id"]
    assert node["title"] == inside["name"] == name
    assert inside["category"] == "Reins"
    assert inside["description"].endswith(".")
    assert all(alias == alias.strip() != "" for alias in workflow["extra"]["BlueprintSearchAliases"])


@pytest.mark.parametrize("name", OUTSIDE)
def test_every_node_inside_is_known_with_all_its_inputs(name):
    _, _, inside = read(name)
    for node in inside["nodes"]:
        known = CORE.get(node["type"]) or set(NODES[node["type"]]["inputs"])
        assert {entry["name"] for entry in node["inputs"]} == known, node["type"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_inputs_that_matter_lead_to_their_nodes_and_the_result_leads_out(name):
    _, outer, inside = read(name)
    inputs, result = OUTSIDE[name]
    nodes, wires = by_id(inside), links(inside)
    found = {}
    for slot, entry in enumerate(inside["inputs"]):
        (wire,) = (wires[number] for number in entry["linkIds"])
        assert (wire["origin_id"], wire["origin_slot"]) == (WAY_IN, slot)
        target = nodes[wire["target_id"]]
        socket = target["inputs"][wire["target_slot"]]
        assert socket["link"] == wire["id"]
        found[entry["name"]] = (target["type"], socket["name"])
    assert found == inputs
    assert list(found) == [entry["name"] for entry in outer["inputs"]]
    assert [entry["name"] for entry in outer["outputs"]] == [entry["name"] for entry in inside["outputs"]] == [result]
    (wire,) = (wires[number] for number in inside["outputs"][0]["linkIds"])
    assert (wire["target_id"], wire["target_slot"]) == (WAY_OUT, 0)
    assert nodes[wire["origin_id"]]["outputs"][wire["origin_slot"]]["type"] == result


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_link_inside_leads_nowhere(name):
    _, _, inside = read(name)
    nodes = by_id(inside)
    for number, wire in links(inside).items():
        if wire["origin_id"] != WAY_IN:
            assert number in nodes[wire["origin_id"]]["outputs"][wire["origin_slot"]]["links"]
        if wire["target_id"] != WAY_OUT:
            assert nodes[wire["target_id"]]["inputs"][wire["target_slot"]]["link"] == number


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_nodes_inside_do_not_overlap(name):
    _, _, inside = read(name)
    ends = [inside[end]["bounding"] for end in ("inputNode", "outputNode")]
    boxes = [(*node["pos"], *node["size"]) for node in inside["nodes"]] + ends
    edges = [(x - MARGIN, y - TITLE, x + width, y + height) for x, y, width, height in boxes]
    for i, a in enumerate(edges):
        for b in edges[i + 1 :]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
