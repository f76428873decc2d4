"""The examples for released transformers, with the settings that they have, on the tiny networks of the same class."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import reins
import torch
from comfy.model_patcher import ModelPatcher
from reins.demo.client import Graph
from reins.demo.graphs import load_graphs
from reins.tests.helpers.tiny_transformers import make, sample, text

FAMILIES = {
    "cfg_zero_star_sd35": "sd35m",
    "slg_skip_layers_sd35": "sd35m",
    "nag_negative_without_cfg_flux": "flux",
    "pag_perturbed_attention_z_image": "zimage",
    "slg_stg_skip_layers_wan21": "wan",
}
OURS, STEPS = "Reins_", 6


async def _nodes() -> Mapping[str, Any]:
    return {node.define_schema().node_id: node for node in await (await reins.comfy_entrypoint()).get_node_list()}


NODES = asyncio.run(_nodes())


def steered(graph: Graph, number: str, model: ModelPatcher, family: str) -> ModelPatcher:
    """The model that leaves a node of a graph. Loaders, and nodes of the host, hand on the tiny model."""
    node = graph[number]
    if not node["class_type"].startswith(OURS):
        return model
    links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
    given = {**node["inputs"], "model": steered(graph, links.pop("model")[0], model, family)}
    given |= {name: text(3, family=family) for name in links}  # a negative
    return NODES[node["class_type"]].execute(**given).result[0]


def test_every_example_for_a_transformer_is_tried():
    ends = ("_sd35", "_flux", "_z_image", "_wan21")
    assert [name for name in load_graphs() if name.endswith(ends)] == sorted(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_picture_of_an_example_differs_from_the_plain_one(name):
    (graph,) = load_graphs([name]).values()
    family, model = FAMILIES[name], make(FAMILIES[name])
    samplers = [node["inputs"] for node in graph.values() if node["class_type"] == "KSampler"]
    made = [
        sample(family, steered(graph, inputs["model"][0], model, family), inputs["cfg"], steps=STEPS)
        for inputs in samplers
    ]
    plain = sample(family, model, samplers[0]["cfg"], steps=STEPS)
    assert torch.equal(made[0], plain)
    assert all(result.isfinite().all() and not torch.equal(result, plain) for result in made[1:])
    assert len(made) >= 2
