"""The pack inside a real ComfyUI: what a person gets who queues a workflow."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

aiohttp = pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo.client import ExecutionFailed, PromptRejected  # noqa: E402
from reins.demo.graphs import TRANSFORMERS_ONLY, load_graphs, needs_more_files, shrunk, with_checkpoint  # noqa: E402
from reins.demo.judge import Verdict, judge  # noqa: E402
from reins.demo.world.model import word_indices  # noqa: E402
from reins.demo.world.scenes import draw, render  # noqa: E402
from reins.tests.server.pictures import picture, pixel_hash  # noqa: E402

if TYPE_CHECKING:
    from reins.demo.client import Event, Graph, Result
    from reins.tests.server.conftest import Server

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
PACK = "ComfyUI-Reins"
GUIDANCE = (
    "Reins_PerturbedAttentionGuidance",
    "Reins_SmoothedEnergyGuidance",
    "Reins_SelfAttentionGuidance",
    "Reins_SlidingWindowGuidance",
    "Reins_TokenPerturbationGuidance",
    "Reins_NormalizedAttentionGuidance",
    "Reins_SparseCrossAttention",
    "Reins_WeakModelGuidance",
    "Reins_AdaptiveProjectedGuidance",
    "Reins_FrequencyDecoupledGuidance",
    "Reins_CFGZeroStar",
    "Reins_ImageGuidance",
    "Reins_GuidanceInterval",
    "Reins_GuidanceRescale",
)
IP_ADAPTER = (
    "Reins_IPAdapterLoader",
    "Reins_IPAdapterEncode",
    "Reins_IPAdapterApply",
    "Reins_IPAdapter",
    "Reins_IPAdapterConditioning",
    "Reins_SaveImageTokens",
    "Reins_LoadImageTokens",
    "Reins_FaceEmbeds",
)
CONTROLNEXT = ("Reins_ControlNeXtLoader", "Reins_ControlNeXtApply")
UNICON = (
    "Reins_UniConLoader",
    "Reins_UniConPrompt",
    "Reins_UniConApply",
    "Reins_UniConJointLatent",
    "Reins_UniConApplyJoint",
    "Reins_UniConSplit",
    "Reins_UniConSampler",
    "Reins_UniConSave",
)
PROMPT_DIFFUSION = ("Reins_PromptDiffusionLoader", "Reins_PromptDiffusionExample")
H_SPACE = (
    "Reins_HDirectionFromPrompts",
    "Reins_HDirectionCapture",
    "Reins_HDirectionLoader",
    "Reins_HDirectionSave",
    "Reins_HSpaceEdit",
    "Reins_AsyrpSampler",
    "Reins_AsyrpRange",
)
CLIP_VISION = ("Reins_CLIPVisionSlerp", "Reins_CLIPVisionMean", "Reins_CLIPTextDiff")
DEMO = ("Reins_DemoModel", "Reins_DemoPrompt", "Reins_DemoScene")
LOOK = ("Reins_GuidanceScope", "Reins_GuidancePlot", "Reins_ImagesSideBySide", "Reins_ImagesToBatch")
CATEGORIES = {
    **dict.fromkeys((*GUIDANCE, *TRANSFORMERS_ONLY), "reins/guidance"),
    **dict.fromkeys(CONTROLNEXT, "reins/controlnext"),
    **dict.fromkeys(UNICON, "reins/unicon"),
    **dict.fromkeys(IP_ADAPTER, "reins/ip-adapter"),
    **dict.fromkeys(PROMPT_DIFFUSION, "reins/prompt-diffusion"),
    **dict.fromkeys(H_SPACE, "reins/h-space"),
    **dict.fromkeys(CLIP_VISION, "reins/clip-vision"),
    **dict.fromkeys(DEMO, "reins/demo"),
    **dict.fromkeys(LOOK, "reins/look"),
}
LINKS = {"MODEL": ["4", 0], "CONDITIONING": ["7", 0], "LATENT": ["5", 0]}  # of the plain graph
SAMPLER, GUIDE, SAVE = "3", "10", "9"
SIDE = 64
NOTES = {"Note", "MarkdownNote"}  # of the editor alone
LABELS = 30  # height of one line of labels below a row of pictures, in pixels


def text_to_image(checkpoint: str, seed: int = 1, steps: int = 2, prefix: str = "test") -> Graph:
    """The plain graph that every ComfyUI opens with, small."""
    sampler = {"seed": seed, "steps": steps, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a lighthouse"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": ""}},
        SAMPLER: {"class_type": "KSampler", "inputs": sampler | links},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": [SAMPLER, 0], "vae": ["4", 2]}},
        SAVE: {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": prefix}},
    }


def guided(graph: Graph, node: str, inputs: dict[str, Any]) -> Graph:
    """The graph with one of our nodes between the checkpoint and the sampler."""
    graph[GUIDE] = {"class_type": node, "inputs": {"model": ["4", 0], **inputs}}
    graph[SAMPLER]["inputs"]["model"] = [GUIDE, 0]
    return graph


def perturbed(graph: Graph, **changes: Any) -> Graph:
    inputs = {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "layers": "m0", "fade": "none"}
    return guided(graph, GUIDANCE[0], inputs | changes)


def inputs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    return info["input"].get("required", {}) | info["input"].get("optional", {})


def default_of(kind: Any, options: dict[str, Any]) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return options["default"] if "default" in options else choices[0]


def run_plain(server: Server, seed: int = 1, prefix: str = "plain") -> Result:
    return server.client.run(text_to_image(server.checkpoint, seed=seed, prefix=prefix))


def test_the_server_starts_without_a_complaint_about_the_pack(server: Server) -> None:
    assert PACK in server.boot_log  # it was loaded at all
    for complaint in ("Traceback", "IMPORT FAILED", f"Cannot import {server.host.settings.base}"):
        assert complaint not in server.boot_log


@pytest.mark.parametrize("node", CATEGORIES)
def test_a_node_explains_itself_and_every_socket(server: Server, node: str) -> None:
    info = server.client.get(f"/object_info/{node}")[node]
    assert info["category"] == CATEGORIES[node]
    assert info["display_name"] != node
    assert info["description"].strip()
    untold = [name for name, (_, *options) in inputs_of(info).items() if not (options and options[0].get("tooltip"))]
    assert not untold, f"inputs without a tooltip: {untold}"
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(info["output_tooltips"])


@pytest.mark.parametrize("node", GUIDANCE)
def test_a_node_with_its_default_values_makes_a_picture(server: Server, node: str) -> None:
    info = server.client.get(f"/object_info/{node}")[node]
    sockets = {name: (kind, *options) for name, (kind, *options) in inputs_of(info).items() if kind != "IMAGE"}
    inputs = {
        name: LINKS[kind] if isinstance(kind, str) and kind in LINKS else default_of(kind, *options)
        for name, (kind, *options) in sockets.items()
    }
    result = server.client.run(guided(text_to_image(server.checkpoint, prefix=node), node, inputs))
    assert picture(server.client, result).size == (SIDE, SIDE)


def test_a_workflow_with_guidance_reports_progress_shows_previews_and_changes_the_picture(server: Server) -> None:
    result = server.client.run(perturbed(text_to_image(server.checkpoint, steps=3)))
    assert picture(server.client, result).size == (SIDE, SIDE)
    assert result.progress(SAMPLER)[-1] == (3, 3)
    assert result.previews
    plain = server.client.run(text_to_image(server.checkpoint, steps=3))
    assert pixel_hash(server.client, plain) != pixel_hash(server.client, result)


def test_guidance_of_scale_zero_leaves_every_pixel(server: Server) -> None:
    result = server.client.run(perturbed(text_to_image(server.checkpoint), scale=0.0))
    assert pixel_hash(server.client, result) == pixel_hash(server.client, run_plain(server))


def test_a_value_below_its_minimum_is_refused_by_name_and_the_next_prompt_runs(server: Server) -> None:
    with pytest.raises(PromptRejected, match=r"(?s)smaller than min.*scale") as refused:
        server.client.run(perturbed(text_to_image(server.checkpoint), scale=-1000.0))
    assert refused.value.node_ids == [GUIDE]
    assert picture(server.client, run_plain(server)).size == (SIDE, SIDE)


def test_a_layer_that_the_model_lacks_is_named_with_those_it_has_and_the_next_prompt_runs(
    server: Server, expected_in_tracebacks: list[str]
) -> None:
    expected_in_tracebacks.append("m7")
    with pytest.raises(ExecutionFailed, match=r"m7.*m0") as failed:
        server.client.run(perturbed(text_to_image(server.checkpoint), layers="m7"))
    assert failed.value.node_id == GUIDE
    assert failed.value.exception_type == "ValueError"
    assert picture(server.client, server.client.run(perturbed(text_to_image(server.checkpoint)))).size == (SIDE, SIDE)


def test_a_cancelled_run_leaves_nothing_behind(server: Server) -> None:
    before = server.client.run(perturbed(text_to_image(server.checkpoint, seed=5, prefix="before")))

    def cancel(event: Event) -> None:
        if event.kind == "progress":
            server.client.interrupt()

    with pytest.raises(ExecutionFailed) as failed:
        server.client.run(perturbed(text_to_image(server.checkpoint, seed=5, steps=500)), on_event=cancel)
    assert failed.value.interrupted
    after = server.client.run(perturbed(text_to_image(server.checkpoint, seed=5, prefix="after")))
    assert pixel_hash(server.client, after) == pixel_hash(server.client, before)


def test_equal_seeds_give_equal_pixels_also_after_unloading_and_other_seeds_others(server: Server) -> None:
    first = server.client.run(perturbed(text_to_image(server.checkpoint, seed=11, prefix="first")))
    server.client.forget()
    time.sleep(1)  # the server forgets when its queue is idle
    second = server.client.run(perturbed(text_to_image(server.checkpoint, seed=11, prefix="second")))
    assert SAMPLER not in second.cached_nodes()
    assert pixel_hash(server.client, first) == pixel_hash(server.client, second)
    other = server.client.run(perturbed(text_to_image(server.checkpoint, seed=12)))
    assert pixel_hash(server.client, other) != pixel_hash(server.client, first)


def test_an_unchanged_workflow_is_not_computed_again(server: Server) -> None:
    graph = perturbed(text_to_image(server.checkpoint, seed=21, prefix="once"))
    server.client.run(graph)
    assert {GUIDE, SAMPLER} <= set(server.client.run(graph).cached_nodes())


def test_every_example_is_offered_among_the_templates(server: Server) -> None:
    files = sorted((ROOT / "example_workflows").glob("*.json"))
    assert files
    assert sorted(server.client.get("/workflow_templates")[PACK]) == [file.stem for file in files]
    for file in files:
        assert server.client.get(f"/api/workflow_templates/{PACK}/{file.name}") == json.loads(file.read_text("utf-8"))
        thumbnail = file.with_suffix(".jpg")
        assert server.client.get_bytes(f"/api/workflow_templates/{PACK}/{thumbnail.name}") == thumbnail.read_bytes()


def test_no_example_and_no_blueprint_uses_a_node_that_the_host_lacks_or_deprecates(server: Server) -> None:
    known = server.client.object_info()
    deprecated = {name for name, info in known.items() if info.get("deprecated")}
    assert deprecated
    for folder in ("example_workflows", "subgraphs"):
        for file in sorted((ROOT / folder).glob("*.json")):
            content = json.loads(file.read_text("utf-8"))
            inside = content.get("definitions", {}).get("subgraphs", [])
            own = {subgraph["id"] for subgraph in inside}
            used = {node["type"] for graph in (content, *inside) for node in graph["nodes"]} - own - NOTES
            assert used <= set(known), file.name
            assert not used & deprecated, file.name


def test_the_blueprints_are_offered_and_name_what_the_server_has(server: Server) -> None:
    if not (server.host.settings.comfy / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this host offers no subgraphs of packs")
    offered = {
        entry["name"]: identity
        for identity, entry in server.client.get("/global_subgraphs").items()
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
    }
    files = sorted((ROOT / "subgraphs").glob("*.json"))
    assert sorted(offered) == [file.stem for file in files]
    known = server.client.object_info()
    for file in files:
        text = file.read_text("utf-8")
        assert server.client.get(f"/global_subgraphs/{offered[file.stem]}")["data"] == text
        (inside,) = json.loads(text)["definitions"]["subgraphs"]
        for node in inside["nodes"]:
            assert wrong_values(node, known[node["type"]]) == []


def wrong_values(node: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Widgets of an editor's node whose value is unknown, not offered or out of range; files are the user's to have."""
    inputs = inputs_of(known)
    named = {name: value for name, value in node["widgets_values_named"].items() if name != "control_after_generate"}
    chosen = {name: value for name, value in named.items() if not str(value).endswith(".safetensors")}
    return [f"{name}: {value}" for name, value in chosen.items() if not is_right(value, *inputs.get(name, [None]))]


def is_right(value: Any, kind: Any, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether a value fits an input, which a host describes by its kind, or by a list of choices, and its options."""
    if isinstance(kind, list):
        return value in kind
    if kind == "COMBO":
        return value in options["options"]
    if kind in ("INT", "FLOAT"):
        return options["min"] <= value <= options["max"]
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}.get(kind, ()))


def test_every_help_page_is_served(server: Server) -> None:
    pages = sorted((ROOT / "web" / "docs").rglob("*.md"))
    assert pages
    for page in pages:
        place = page.relative_to(ROOT / "web").as_posix()
        assert server.client.get_bytes(f"/extensions/{PACK}/{place}") == page.read_bytes()


def test_every_translation_reaches_the_frontend(server: Server) -> None:
    files = sorted((ROOT / "locales").glob("*/nodeDefs.json"))
    assert files
    served = server.client.get("/i18n")
    known = {name for name in server.client.object_info() if name.startswith("Reins_")}
    for file in files:
        translations = json.loads(file.read_text("utf-8"))
        assert translations.keys() <= known, "a translation names a node that does not exist"
        assert served[file.parent.name]["nodeDefs"].items() >= translations.items()


@pytest.mark.parametrize("name", [name for name, graph in load_graphs().items() if not needs_more_files(graph)])
def test_an_example_runs_through_the_api(server: Server, name: str) -> None:
    (graph,) = load_graphs([name]).values()
    result = server.client.run(shrunk(with_checkpoint(graph, server.checkpoint), pixels=SIDE, steps=2))
    assert result.image_files()


def test_the_demo_workflow_draws_what_its_three_prompts_say(server: Server) -> None:
    (graph,) = load_graphs(["demo_prompt"]).values()
    result = server.client.run(graph)
    asked = {node: saved_words(graph, node) for node in graph if graph[node]["class_type"] == "SaveImage"}
    assert len(asked) == 3
    right = wrong = 0
    for node, words in asked.items():
        files = result.outputs[node]["images"]
        drawn = torch.stack([as_scene(server.client.image_bytes(file)) for file in files])
        assert len(drawn) == 4
        verdict = judge(drawn)
        right += verdict.right(words).all(1).sum().item()
        wrong += sum(verdict.right(other).all(1).sum().item() for name, other in asked.items() if name != node)
    assert right >= 11
    assert wrong == 0


def test_the_ip_adapter_workflow_takes_the_look_from_the_reference_and_the_rest_from_the_prompt(server: Server) -> None:
    (graph,) = load_graphs(["demo_ip_adapter"]).values()
    result = server.client.run(graph)
    (reference,) = scenes(graph)
    look = {slot: reference[slot] for slot in ("colour", "background", "texture")}
    plain, adapted = (
        saved_row(server, graph, result, f"reins/{name}") for name in ("demo_ip_adapter_plain", "demo_ip_adapter")
    )
    for row in (plain, adapted):
        assert judge(row.drawn).right(saved_words(graph, row.node)).all(1).sum() >= 3
    assert judge(adapted.drawn).right(word_indices(look)).all(1).sum() >= 3
    assert judge(plain.drawn).right(word_indices(look)).all(1).sum() == 0


def test_the_regions_workflow_gives_each_half_its_references_colour_and_offers_the_saved_tokens(server: Server) -> None:
    (graph,) = load_graphs(["demo_ip_adapter_regions"]).values()
    result = server.client.run(graph)
    drawn = saved_row(server, graph, result, "reins/demo_ip_adapter_regions").drawn
    red_over_blue = (drawn[:, 0] - drawn[:, 2])[:, 12:20]
    assert (red_over_blue[:, :, 11:14].mean((1, 2)) > 0.25).all()
    assert (red_over_blue[:, :, 18:21].mean((1, 2)) < -0.25).all()
    assert any(name.startswith("demo_red_") for name in choices(server, "Reins_LoadImageTokens", "name"))


def test_the_frames_workflow_gives_each_picture_the_look_of_its_own_reference(server: Server) -> None:
    (graph,) = load_graphs(["demo_ip_adapter_frames"]).values()
    result = server.client.run(graph)
    own = torch.cat([word_indices({slot: scene[slot] for slot in ("colour", "background")}) for scene in scenes(graph)])
    apart, together = (
        saved_row(server, graph, result, f"reins/demo_ip_adapter_{name}").drawn for name in ("frames", "together")
    )
    assert judge(apart).right(own).all(1).all()
    assert judge(together).right(own).all(1).sum() <= 1


def test_the_controlnext_workflow_draws_the_form_of_all_three_hints_with_the_look_of_the_words(server: Server) -> None:
    (graph,) = load_graphs(["demo_controlnext"]).values()
    look, (form,) = said_and_shown(graph)
    plain, hinted = judged(server, graph, 3)
    assert plain.right(look).all()
    assert plain.right(form).all(1).sum() == 0
    assert hinted.right(look).all()
    assert hinted.right(form).all()


def test_the_unicon_workflow_draws_the_form_of_each_depth_map_with_the_look_of_the_words(server: Server) -> None:
    (graph,) = load_graphs(["demo_unicon_depth_to_image"]).values()
    look, forms = said_and_shown(graph)
    plain, beside = judged(server, graph, 4)
    assert plain.right(look).all()
    assert plain.right(forms).all(1).sum() == 0
    assert beside.right(look).all()
    assert beside.right(forms).all(1).sum() >= 3


def test_controlnet_and_controlnext_both_draw_the_form_of_the_depth_with_the_look_of_the_words(server: Server) -> None:
    (graph,) = load_graphs(["demo_control_net"]).values()
    look, (form,) = said_and_shown(graph)
    for steered in judged(server, graph, 2):
        assert steered.right(look).all()
        assert steered.right(form).all()


def test_the_prompt_diffusion_workflow_does_what_each_example_shows(server: Server) -> None:
    (graph,) = load_graphs(["demo_prompt_diffusion"]).values()
    depth, edges, drawn = (row[-1] for row in saved_rows(server, graph, 3, 4))
    asked = scenes(graph)[1]
    views = render(draw(1, torch.Generator().manual_seed(asked["seed"]), word_indices(asked)))
    for answer, wanted, other in ((depth, views.depth, views.edge), (edges, views.edge, views.depth)):
        assert (answer - wanted).abs().mean() < 0.05
        assert (answer - other).abs().mean() > 0.1
    said = next(node["inputs"] for node in graph.values() if node["inputs"].get("colour") == "yellow")
    look = {slot: said[slot] for slot in ("colour", "background", "texture")}
    form = {slot: asked[slot] for slot in ("shape", "place", "size")}
    assert judge(drawn[None]).right(word_indices(form | look)).all()


def test_the_h_space_workflow_changes_the_size_and_nothing_else(server: Server) -> None:
    (graph,) = load_graphs(["demo_asyrp_h_space"]).values()
    rows = saved_rows(server, graph, 4, 3)
    smaller, plain, larger = (judge(torch.stack(column)) for column in zip(*rows, strict=True))
    words = word_indices(next(node["inputs"] for node in graph.values() if node["inputs"].get("shape") == "square"))
    for found in (smaller, plain, larger):
        assert found.right(words).all()
    assert smaller.radius.mean() + 0.3 < plain.radius.mean() < larger.radius.mean() - 0.3


def test_the_clip_vision_workflow_goes_from_the_look_of_one_scene_to_that_of_the_other(server: Server) -> None:
    (graph,) = load_graphs(["demo_unclip_clip_vision"]).values()
    drawn = torch.stack([row[1] for row in saved_rows(server, graph, 5, 3)])
    found = judge(drawn)
    looks = [word_indices({slot: scene[slot] for slot in ("colour", "background")}) for scene in scenes(graph)]
    for end, look in zip((0, -1), looks, strict=True):
        assert found.right(look)[end].all()
    assert found.right(word_indices({"shape": "triangle", "place": "left"})).all()
    green = (drawn[:, 1] * found.mask).sum((1, 2)) / found.mask.sum((1, 2))  # red has none, yellow has
    assert (green.diff() > 0.02).all()


def said_and_shown(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first prompt says of the look (1, slots), and the form of each scene (b, slots)."""
    prompt = next(node["inputs"] for node in graph.values() if node["class_type"] == "Reins_DemoPrompt")
    look = word_indices({slot: prompt[slot] for slot in ("colour", "background", "texture")})
    forms = [word_indices({slot: scene[slot] for slot in ("shape", "place", "size")}) for scene in scenes(graph)]
    return look, torch.cat(forms)


def judged(server: Server, graph: Graph, count: int) -> list[Verdict]:
    """What the second and the third of the pictures that are saved side by side show."""
    return [judge(torch.stack(column)) for column in list(zip(*saved_rows(server, graph, count, 3), strict=True))[1:]]


def saved_rows(server: Server, graph: Graph, count: int, columns: int) -> list[list[torch.Tensor]]:
    """What a workflow saves side by side: `count` rows of (3, 32, 32) in 0..1, two pixels apart, enlarged by 8.

    Below them stand labels.
    """
    result = server.client.run(graph)
    (save,) = (node for node in graph if graph[node]["class_type"] == "SaveImage")
    files = result.outputs[save]["images"]
    assert len(files) == count
    rows = [shrunk_pixels(server.client.image_bytes(file), 34 * columns - 2, 32, LABELS) for file in files]
    return [[row[:, :, left : left + 32] for left in range(0, 34 * columns, 34)] for row in rows]


class Row(NamedTuple):
    """The pictures that one node saved, (b, 3, 32, 32)."""

    node: str
    drawn: torch.Tensor


def saved_row(server: Server, graph: Graph, result: Result, prefix: str) -> Row:
    (node,) = (name for name, node in graph.items() if node["inputs"].get("filename_prefix") == prefix)
    files = result.outputs[node]["images"]
    assert len(files) == 4
    return Row(node, torch.stack([as_scene(server.client.image_bytes(file)) for file in files]))


def scenes(graph: Graph) -> list[dict[str, Any]]:
    """The inputs of the drawn references."""
    return [node["inputs"] for node in graph.values() if node["class_type"] == "Reins_DemoScene"]


def choices(server: Server, node: str, name: str) -> list[str]:
    """What a combo box offers, in either of the two forms in which hosts describe one."""
    kind, *options = inputs_of(server.client.get(f"/object_info/{node}")[node])[name]
    return kind if isinstance(kind, list) else options[0]["options"]


def saved_words(graph: Graph, node: str) -> torch.Tensor:
    """The words of the prompt from which a picture comes: up the graph from where it is saved."""
    while graph[node]["class_type"] != "KSampler":
        inputs = graph[node]["inputs"]
        node = (inputs.get("images") or inputs.get("image") or inputs.get("samples"))[0]
    return word_indices(graph[graph[node]["inputs"]["positive"][0]]["inputs"])


def as_scene(png: bytes) -> torch.Tensor:
    """(3, 32, 32) in 0..1 of a picture that was enlarged by 8."""
    return shrunk_pixels(png, 32, 32)


def shrunk_pixels(png: bytes, width: int, height: int, labels: int = 0) -> torch.Tensor:
    """(3, height, width) in 0..1 of a picture that was enlarged by 8, without the rows of pixels with its labels."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.size == (width * 8, height * 8 + labels)
    image = image.crop((0, 0, width * 8, height * 8))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height * 8, width * 8, 3)
    return pixels[4::8, 4::8].movedim(-1, 0) / 255


def test_the_packs_style_is_offered_by_the_hosts_own_lora_loader(server: Server) -> None:
    assert "reins-demo-checked.safetensors" in choices(server, "LoraLoaderModelOnly", "lora_name")
