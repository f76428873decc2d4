"""Prompts that nobody would write: examples cut to one picture, with options, sizes and further nodes by chance."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from reins.demo.client import Graph
from reins.demo.graphs import TRANSFORMERS_ONLY

LAYERS = ("m0", "all", "u0-u1", "d0,m0", "u2", "m7", "", "nonsense", "u3-u1")
FEW = {  # what would take long
    "steps": (1, 2),
    "samples": (1, 2),
    "batch_size": (1, 2),
    "levels": (1, 3),
    "frames": (1, 4),
    "component": (1, 3),
}
SIDES = range(64, 144, 8)  # pixels; the demo model sees an eighth of it
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "ddim", "uni_pc", "lcm")
LITERAL = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
AT_HAND = {"MODEL": "model", "CONDITIONING": "negative"}  # what a node that is put in takes from its sampler


class Input(NamedTuple):
    """One input as the server describes it."""

    kind: str
    options: Mapping[str, Any]


class RandomGraphs:
    """Draws graphs from a seed; `info` is what the server knows of its nodes."""

    def __init__(self, seed: int, info: Mapping[str, Any], bases: Mapping[str, Graph]) -> None:
        self._chance = random.Random(seed)
        self._info = info
        self._bases = bases
        self._insertable = [name for name in info if self._is_insertable(name)]

    def draw(self) -> Graph:
        graph = self._one_output(copy.deepcopy(self._chance.choice(list(self._bases.values()))))
        for node in graph.values():
            self._vary(node)
        for name in [name for name, node in graph.items() if node["class_type"] == "KSampler"]:
            for _ in range(self._chance.choice((0, 0, 1, 1, 2, 3))):
                self._insert(graph, name)
        return graph

    def _one_output(self, graph: Graph) -> Graph:
        outputs = [name for name, node in graph.items() if self._info[node["class_type"]]["output_node"]]
        return leading_to(graph, self._chance.choice(outputs))

    def _inputs(self, class_type: str) -> dict[str, Input]:
        listed = self._info[class_type]["input"]
        named = listed.get("required", {}) | listed.get("optional", {})
        return {
            name: Input("COMBO", {"options": kind}) if isinstance(kind, list) else Input(kind, (options or [{}])[0])
            for name, (kind, *options) in named.items()
        }

    def _is_insertable(self, name: str) -> bool:
        if name in TRANSFORMERS_ONLY:
            return False
        required = self._info[name]["input"].get("required", {})
        kinds = {described.kind for key, described in self._inputs(name).items() if key in required}
        return self._info[name]["category"] == "reins/guidance" and kinds <= {*LITERAL, *AT_HAND}

    def _vary(self, node: dict[str, Any]) -> None:
        ours = node["class_type"].startswith("Reins_")
        for name, described in self._inputs(node["class_type"]).items():
            value = node["inputs"].get(name)
            if isinstance(value, list) or value is None:
                continue
            if name in FEW:
                node["inputs"][name] = self._chance.randint(*FEW[name])
            elif name in ("width", "height") and node["class_type"] == "EmptyLatentImage":
                node["inputs"][name] = self._chance.choice(SIDES)
            elif name == "sampler_name":
                node["inputs"][name] = self._chance.choice(SAMPLERS)
            elif name == "seed" or (ours and self._chance.random() < 0.4):
                node["inputs"][name] = self._value(name, described, value)

    def _value(self, name: str, described: Input, value: Any) -> Any:
        if described.kind == "COMBO":
            return self._chance.choice(described.options["options"])
        if described.kind == "BOOLEAN":
            return self._chance.random() < 0.5
        if described.kind == "INT" and name not in FEW:
            low, high = described.options.get("min", 0), described.options.get("max", 8)
            return self._chance.randint(low, min(high, low + 1024))
        if described.kind == "FLOAT":
            low, high = described.options.get("min", 0.0), described.options.get("max", 1.0)
            return round(self._chance.uniform(max(low, -2.0), min(high, 8.0)), 3)
        return self._chance.choice(LAYERS) if name == "layers" else value

    def _insert(self, graph: Graph, sampler: str) -> None:
        """Puts a guidance node between a sampler and its model."""
        class_type = self._chance.choice(self._insertable)
        inputs = {}
        for name, described in self._inputs(class_type).items():
            if described.kind in AT_HAND:
                inputs[name] = graph[sampler]["inputs"][AT_HAND[described.kind]]
            elif described.kind in LITERAL:
                default = described.options.get("default", described.options.get("options", [""])[0])
                inputs[name] = self._value(name, described, default) if self._chance.random() < 0.4 else default
        new = f"{sampler}-{len(graph)}"
        graph[new] = {"class_type": class_type, "inputs": inputs}
        graph[sampler]["inputs"]["model"] = [new, 0]


def leading_to(graph: Graph, output: str) -> Graph:
    """The part of a graph that one of its nodes depends on."""
    kept, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return {name: node for name, node in graph.items() if name in kept}
