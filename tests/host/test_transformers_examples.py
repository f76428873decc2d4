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
from reins.models.ip_adapter.siglip import PREFIX, PoolingHead
from reins.nodes.ip_adapter.load import make_ip_adapter, with_pooling
from reins.nodes.ip_adapter.prompt import IPAdapter
from reins.tests.helpers import ip_adapter
from reins.tests.helpers.tiny_transformers import make, sample, text
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file

FAMILIES = {
    "cfg_zero_star_sd35": "sd35m",
    "slg_skip_layers_sd35": "sd35m",
    "ip_adapter_sd35": "sd3",
    "nag_negative_without_cfg_flux": "flux",
    "ip_adapter_flux_xlabs": "flux",
    "ip_adapter_flux_instantx": "flux",
    "pag_perturbed_attention_z_image": "zimage",
    "slg_stg_skip_layers_wan21": "wan",
}
OURS, STEPS = "Reins_", 6
SIGLIP = "sigclip_vision_patch14_384.safetensors"
TINY_SIGLIP = {"model_type": "siglip_vision_model", "projection_dim": ip_adapter.HIDDEN}


async def _nodes() -> Mapping[str, Any]:
    return {node.define_schema().node_id: node for node in await (await reins.comfy_entrypoint()).get_node_list()}


NODES = asyncio.run(_nodes())


def adapter(file: str, pooling_head: str) -> IPAdapter:
    """A tiny file in the form of the released one, and the pooling head of a tiny SigLIP if one is named."""
    made = make_ip_adapter(
        {
            "ip-adapter_diffusers.safetensors": lambda: sd3_file(layers=3, width=ip_adapter.HIDDEN),
            "ip_adapter.safetensors": lambda: xlabs_file(width=ip_adapter.EMBEDS),
            "ip-adapter.bin": lambda: instantx_flux_file(width=ip_adapter.HIDDEN),
        }[file](),
        file,
    )
    if pooling_head == "none":
        return made
    head = ip_adapter.fill(PoolingHead(ip_adapter.HIDDEN, 40, ip_adapter.OPERATIONS), 6)
    return with_pooling(made, {f"{PREFIX}{name}": value for name, value in head.state_dict().items()}, pooling_head)


def given(graph: Graph, number: str, family: str) -> Any:
    """What a node of a graph that is no model gives: an adapter, an encoder, a picture, tokens, else a text."""
    kind, inputs = graph[number]["class_type"], graph[number]["inputs"]
    match kind:
        case "Reins_IPAdapterLoader":
            return adapter(inputs["name"], inputs["pooling_head"])
        case "CLIPVisionLoader":
            is_siglip = inputs["clip_name"] == SIGLIP
            return ip_adapter.encoder(**TINY_SIGLIP) if is_siglip else ip_adapter.encoder()
        case "LoadImage":
            return ip_adapter.picture()
        case "Reins_IPAdapterEncode":
            return NODES[kind].execute(**resolved(graph, inputs, family)).result[0]
    return text(3, family=family)


def resolved(graph: Graph, inputs: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The inputs of a node, with what their links give."""
    return {
        name: given(graph, value[0], family) if isinstance(value, list) else value for name, value in inputs.items()
    }


def steered(graph: Graph, number: str, model: ModelPatcher, family: str) -> ModelPatcher:
    """The model that leaves a node of a graph. Loaders, and nodes of the host, hand on the tiny model."""
    node = graph[number]
    if not node["class_type"].startswith(OURS):
        return model
    inputs = dict(node["inputs"])
    below = steered(graph, inputs.pop("model")[0], model, family)
    return NODES[node["class_type"]].execute(model=below, **resolved(graph, inputs, family)).result[0]


def test_every_example_for_a_transformer_is_tried():
    ends = ("_sd35", "_flux", "_flux_xlabs", "_flux_instantx", "_z_image", "_wan21")
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
