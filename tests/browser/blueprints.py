"""Blueprints in the editor: what a person does who takes one from the search and puts it into a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from playwright.sync_api import Route, expect

from . import person

if TYPE_CHECKING:
    from reins.demo.client import Graph

    from .page import Frontend, Json

FOLDER = Path(__file__).parents[2] / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTHING = dict.fromkeys(("shape", "colour", "place", "size", "background", "texture"), "any")
SAMPLING = {
    "seed": 7, "steps": 2, "cfg": 3, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
    "model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["2", 0],
}  # fmt: skip
AROUND: Graph = {  # a picture of the demo model, and a second one to look at
    "1": {"class_type": "Reins_DemoModel", "inputs": {"variant": "base"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
    "3": {"class_type": "Reins_DemoPrompt", "inputs": {**NOTHING, "shape": "triangle", "branch": "image"}},
    "4": {"class_type": "Reins_DemoPrompt", "inputs": {**NOTHING, "branch": "image"}},
    "5": {
        "class_type": "Reins_DemoScene",
        "inputs": {
            "shape": "circle", "colour": "yellow", "place": "centre", "size": "large", "background": "white",
            "texture": "striped", "seed": 0, "batch_size": 1,
        },
    },
    "6": {"class_type": "KSampler", "inputs": SAMPLING},
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 1]}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
}  # fmt: skip

ADD = """([name, wires, values, left_over]) => {
    const graph = window.app.graph
    const node = graph.nodes.find(node => node.title === name)
    const found = id => id === null ? node : graph.getNodeById(id) ?? graph.getNodeById(Number(id))
    for (const [from, output, to, input] of wires)
        found(from).connect(output, found(to), found(to).inputs.findIndex(({ name }) => name === input))
    for (const id of left_over) graph.remove(found(id))
    for (const [name, value] of Object.entries(values))
        node.widgets.find(widget => widget.name === name).value = value
    return String(node.id)
}"""
RED = "() => window.app.graph.nodes.filter(node => node.has_errors).map(node => node.title)"
OVERLAPS_INSIDE = person.OVERLAPS.replace("window.app.graph", "window.app.canvas.graph")
INSIDE = """id => {
    const node = window.app.graph.nodes.find(node => String(node.id) === id)
    window.app.canvas.setGraph(node.subgraph)
}"""


class Use(NamedTuple):
    """How a blueprint stands in the graph: wires with None for itself, nodes that it replaces, and its values.

    With each value stand the node inside that takes it, and the input there.
    """

    wires: Sequence[tuple[str | None, int, str | None, str]]
    replaced: Sequence[str]
    values: Mapping[str, tuple[Json, str, str]]


USES = {
    "Guided sampler (Reins)": Use(
        [
            ("1", 0, None, "model"), ("3", 0, None, "positive"), ("4", 0, None, "negative"),
            ("2", 0, None, "latent_image"), (None, 0, "7", "samples"),
        ],
        ["6"],
        {
            "seed": (11, "KSampler", "seed"),
            "steps": (3, "KSampler", "steps"),
            "cfg": (2.5, "KSampler", "cfg"),
            "sampler_name": ("heun", "KSampler", "sampler_name"),
            "scheduler": ("simple", "KSampler", "scheduler"),
            "denoise": (0.9, "KSampler", "denoise"),
            "pag_scale": (0.5, "Reins_PerturbedAttentionGuidance", "scale"),
            "interval_start": (0.2, "Reins_GuidanceInterval", "start_percent"),
            "interval_end": (0.7, "Reins_GuidanceInterval", "end_percent"),
            "rescale": (0.4, "Reins_GuidanceRescale", "rescale"),
        },
    ),
    "Look from a picture (Reins)": Use(
        [("1", 0, None, "model"), ("5", 0, None, "image"), (None, 0, "6", "model")],
        [],
        {
            "clip_name": ("model.safetensors", "CLIPVisionLoader", "clip_name"),
            "ipadapter_name": ("reins-demo-ip-adapter.safetensors", "Reins_IPAdapterLoader", "name"),
            "weight": (0.6, "Reins_IPAdapterApply", "weight"),
            "weight_type": ("ease in", "Reins_IPAdapterApply", "weight_type"),
            "start_percent": (0.1, "Reins_IPAdapterApply", "start_percent"),
            "end_percent": (0.6, "Reins_IPAdapterApply", "end_percent"),
        },
    ),
}  # fmt: skip


def draw_with(editor: Frontend, name: str, screen: str) -> None:
    """Takes a blueprint into a graph of the demo model and presses Run; its values reach the nodes inside.

    Neither the graph nor what is inside has nodes over nodes.
    """
    node = add(editor, name)
    assert taken(editor, name) == {outside: value for outside, (value, _, _) in USES[name].values.items()}
    use_the_demo_models_encoder(editor)
    assert person.run(editor) == {"8": [[32, 32]]}
    assert editor.page.evaluate(RED) == []
    person.keep_screen(editor, screen)
    open_inside(editor, node)
    assert editor.page.evaluate(OVERLAPS_INSIDE) == []
    person.keep_screen(editor, f"{screen}_inside")


def add(editor: Frontend, name: str) -> str:
    """Opens a graph of the demo model, takes a blueprint from the search and wires it: the id of its node."""
    editor.load_api(AROUND, "around")
    take(editor, name)
    use = USES[name]
    values = {name: value for name, (value, _, _) in use.values.items()}
    node = editor.page.evaluate(ADD, [name, use.wires, values, use.replaced])
    editor.page.evaluate("() => window.app.graph.arrange()")
    editor.settle()
    return node


def take(editor: Frontend, name: str) -> None:
    """Types the name of a blueprint into the node search, takes the first result and puts it down."""
    page = editor.page
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill(name)
    result = dialog.get_by_test_id("result-item").first
    expect(result).to_contain_text(name, timeout=person.PATIENCE_MS)
    result.click()
    expect(dialog).to_have_count(0)
    page.locator("#graph-canvas").click(position={"x": 800, "y": 700})
    page.evaluate("() => window.app.canvas.deselectAll()")  # the view is fitted to what is selected
    editor.settle()


def taken(editor: Frontend, name: str) -> dict[str, Json]:
    """What the nodes inside of a wired blueprint take for each value outside, in the graph that Run would queue."""
    inside = {content["class_type"]: content["inputs"] for node, content in editor.api_graph().items() if ":" in node}
    return {outside: inside[node][entry] for outside, (_, node, entry) in USES[name].values.items()}


def use_the_demo_models_encoder(editor: Frontend) -> None:
    """Lets runs take the image encoder of the demo model, which has no file that a loader of the host could read."""

    def queue(route: Route) -> None:
        body = route.request.post_data_json
        graph = body["prompt"]
        loaders = {node for node, content in graph.items() if content["class_type"] == "CLIPVisionLoader"}
        for content in graph.values():
            for name, value in content["inputs"].items():
                if isinstance(value, list) and value[0] in loaders:
                    content["inputs"][name] = ["1", 2]
        for node in loaders:
            del graph[node]
        route.continue_(post_data=json.dumps(body))

    editor.page.unroute("**/api/prompt")
    editor.page.route("**/api/prompt", queue)


def open_inside(editor: Frontend, node: str) -> None:
    """Shows what is in a subgraph."""
    editor.page.evaluate(INSIDE, node)
    person.fit(editor)
