"""The pack in the real editor: what a person sees who opens an example, presses Run, asks for help or for a node.

REINS_SCREENS names a folder: every example that can run is then run as it is, and its screen is written there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from reins.demo.graphs import (  # noqa: E402
    EXAMPLE_CHECKPOINT,
    EXAMPLE_FILES,
    START,
    load_graphs,
    needs_checkpoint,
    needs_more_files,
    offer_names,
)
from reins.demo.host import Host, HostSettings, weightless_arguments, write_weightless  # noqa: E402
from reins.demo.serve import offer_examples  # noqa: E402
from reins.tests.browser import blueprints, person, stand_ins, template_cards  # noqa: E402
from reins.tests.browser.page import UnknownNodes, as_text, find_chromium, open_frontend  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402

if TYPE_CHECKING:
    from reins.demo.client import Graph
    from reins.tests.browser.page import Frontend

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PACK = "ComfyUI-Reins"
DOCS = ROOT / "web" / "docs"
NODES = {
    language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for language in ("en", "ko", "ja", "zh")
}
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
GUIDE = {
    "class_type": "Reins_PerturbedAttentionGuidance",
    "inputs": {"model": ["4", 0], "scale": 2.5, "start_percent": 0.1, "end_percent": 0.9, "layers": "m0,u0"},
}
LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": EXAMPLE_CHECKPOINT}}
FULL_ONLY = "opens the editor anew, twice: only with dev.py test --full"
FIRST = 5  # results that stand on the screen without scrolling
WORDS = {
    "PAG": "Reins_PerturbedAttentionGuidance",
    "perturbed-attention guidance": "Reins_PerturbedAttentionGuidance",
    "perturbed attention": "Reins_PerturbedAttentionGuidance",
    "SEG": "Reins_SmoothedEnergyGuidance",
    "smoothed energy": "Reins_SmoothedEnergyGuidance",
    "SAG": "Reins_SelfAttentionGuidance",
    "self-attention guidance": "Reins_SelfAttentionGuidance",
    "sliding window": "Reins_SlidingWindowGuidance",
    "SWG": "Reins_SlidingWindowGuidance",
    "TPG": "Reins_TokenPerturbationGuidance",
    "token perturbation": "Reins_TokenPerturbationGuidance",
    "SLG": "Reins_SkipLayerGuidance",
    "STG": "Reins_SkipLayerGuidance",
    "skip layer": "Reins_SkipLayerGuidance",
    "NAG": "Reins_NormalizedAttentionGuidance",
    "normalized attention": "Reins_NormalizedAttentionGuidance",
    "PLADIS": "Reins_SparseCrossAttention",
    "sparse cross-attention": "Reins_SparseCrossAttention",
    "autoguidance": "Reins_WeakModelGuidance",
    "weak model": "Reins_WeakModelGuidance",
    "APG": "Reins_AdaptiveProjectedGuidance",
    "adaptive projected": "Reins_AdaptiveProjectedGuidance",
    "FDG": "Reins_FrequencyDecoupledGuidance",
    "frequency-decoupled": "Reins_FrequencyDecoupledGuidance",
    "CFG zero": "Reins_CFGZeroStar",
    "universal guidance": "Reins_ImageGuidance",
    "limited interval": "Reins_GuidanceInterval",
    "rescale cfg": "Reins_GuidanceRescale",
    "controlnext": "Reins_ControlNeXtApply",
    "unicon": "Reins_UniConApply",
    "depth to image": "Reins_UniConApply",
    "ipadapter": "Reins_IPAdapter",
    "image prompt": "Reins_IPAdapter",
    "style transfer": "Reins_IPAdapterApply",
    "FaceID": "Reins_IPAdapterLoader",
    "prompt diffusion": "Reins_PromptDiffusionLoader",
    "in-context": "Reins_PromptDiffusionExample",
    "asyrp": "Reins_HSpaceEdit",
    "h-space": "Reins_HSpaceEdit",
    "slerp": "Reins_CLIPVisionSlerp",
    "unCLIP": "Reins_CLIPVisionMean",
    "debug guidance": "Reins_GuidanceScope",
}
SMALL_WINDOW = {"width": 1024, "height": 640}
WEIGHTLESS = "sd15-min"
SHORT = {"steps": 2}
BLANK_BELOW = 8 / 14  # of the size at which texts have 14 pixels
SMALL = SHORT | {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """One open editor.  Not for the session: while it is open, no other test of this process can use asyncio."""
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    comfy = host_folder()
    settings = HostSettings(comfy, tmp_path_factory.mktemp("browser"), arguments=weightless_arguments(comfy))
    offer_names(settings.base)
    stand_ins.draw(settings.base, set(EXAMPLE_FILES["input"]))
    write_weightless(settings.comfy, WEIGHTLESS, settings.checkpoints)
    offer_examples(settings, EXAMPLE_CHECKPOINT)
    with Host(settings) as host, open_frontend(host.url, host.client.post) as frontend:
        yield frontend


def test_values_of_a_node_survive_the_editor(editor: Frontend) -> None:
    editor.load_api({"4": LOADER, "10": GUIDE | {"inputs": GUIDE["inputs"] | {"fade": "linear"}}}, "values")
    exported = editor.twin_of(editor.workflow())["10"]["inputs"]
    assert exported.items() >= (GUIDE["inputs"] | {"fade": "linear"}).items()


def test_a_workflow_with_an_unknown_node_is_noticed(editor: Frontend) -> None:
    editor.load_api({"4": LOADER, "10": GUIDE}, "known")
    workflow = editor.workflow()
    workflow["nodes"][0]["type"] = "Reins_NoSuchNode"
    with pytest.raises(UnknownNodes, match="Reins_NoSuchNode"):
        editor.load(workflow)


def _needs_released_files(graph: Graph) -> bool:
    """Pictures are at hand; checkpoints for loaders of other kinds (unCLIP, SVD) and all further files are not."""
    loading = {node: content for node, content in graph.items() if content["class_type"] != "LoadImage"}
    return needs_more_files(loading) or any(node["class_type"].endswith("CheckpointLoader") for node in graph.values())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_dropped_example_has_no_fault_and_runs_and_its_api_twin_is_up_to_date(editor: Frontend, path: Path) -> None:
    (graph,) = load_graphs([path.stem]).values()
    person.drop(editor, path.stem, path.read_text(encoding="utf-8"))
    assert person.faults(editor) == []
    assert person.cut_off(editor) == []
    assert as_text(editor.twin()) == as_text(graph), "run tests/browser/export.py"
    if _needs_released_files(graph):
        return  # beside a checkpoint and pictures it names files that only stand in the lists: test_released_files.py
    if needs_checkpoint(graph):
        person.at_most(editor, {"ckpt_name": f"reins-weightless-{WEIGHTLESS}.ckpt", **SMALL})
    elif not person.SCREENS:
        person.at_most(editor, SHORT)
    assert person.saving(graph) <= set(person.run(editor))
    person.keep_screen(editor, path.stem)
    assert person.overlaps(editor) == []


def test_every_api_graph_has_an_example() -> None:
    assert sorted(load_graphs()) == [path.stem for path in EXAMPLES]


@pytest.mark.parametrize("words", WORDS)
def test_the_node_search_finds_a_node_by_the_words_of_the_field(editor: Frontend, words: str) -> None:
    assert NODES["en"][WORDS[words]]["display_name"] in person.search(editor, words)[:FIRST]


@pytest.mark.parametrize("node", NODES["en"])
def test_the_help_page_of_a_node_opens_with_its_pictures(editor: Frontend, node: str) -> None:
    shown = person.help_page(editor, node)
    written = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    assert len(shown.picture_widths) == written.count("![")
    assert all(shown.picture_widths)
    for heading in re.findall(r"^## (.+)$", written, re.MULTILINE):
        assert heading in shown.text


def test_the_templates_browser_shows_every_example_with_its_thumbnail(editor: Frontend) -> None:
    cards = template_cards.all_of(editor, PACK)
    assert sorted(card.name for card in cards) == [path.stem for path in EXAMPLES]
    assert all(card.thumbnail_width >= 256 for card in cards)


def test_a_stranger_types_start_in_the_templates_browser_and_two_clicks_lead_to_a_picture(editor: Frontend) -> None:
    """The first click is on the card, the second on Run. The note says so, though the graph is seen from afar."""
    with editor.as_installed():
        assert template_cards.take_first(editor, PACK, "start") == START
        assert person.faults(editor) == []
        person.fit(editor)
        assert person.zoom(editor) < BLANK_BELOW
        assert person.can_read(editor, "Start here: press Run")
        assert person.saving(load_graphs()[START]) <= set(person.run(editor))


def test_a_note_of_a_persons_own_is_left_as_comfyui_has_it(editor: Frontend) -> None:
    note = {"id": 1, "type": "MarkdownNote", "pos": [0, 0], "size": [400, 300], "widgets_values": ["# My own"]}
    with editor.as_installed():
        editor.load({"nodes": [note], "links": [], "groups": [], "version": 0.4})
        shown = []
        for scale in (1.0, 0.4):
            person.zoom_to(editor, scale)
            shown.append(person.can_read(editor, "My own"))
        assert shown == [True, False]


def test_the_side_bar_lists_the_saved_examples_from_the_one_to_start_with(editor: Frontend) -> None:
    listed = person.saved_workflows(editor, "reins")
    assert sorted(listed) == [path.stem for path in EXAMPLES]
    assert listed[0] == START


def test_in_nodes_2_advanced_inputs_are_hidden_until_a_person_asks_and_the_graph_stays(editor: Frontend) -> None:
    path = ROOT / "example_workflows" / "demo_ip_adapter_frames.json"
    (node,) = (node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["id"] == 21)
    first, advanced = {"weight", "weight_type", "per_frame"}, {"scaling", "composition_weight", "boost", "only_for"}
    editor.reopen({"Comfy.VueNodes.Enabled": True})
    try:
        person.drop(editor, f"{path.stem}_nodes_2", path.read_text(encoding="utf-8"))
        person.fit(editor)
        assert person.shown_widgets(editor, "21") & (first | advanced) == first
        person.show_advanced(editor, "21")
        assert person.shown_widgets(editor, "21") >= first | advanced
        (graph,) = load_graphs([path.stem]).values()
        assert as_text(editor.twin()) == as_text(graph)
        (saved,) = (node for node in editor.workflow()["nodes"] if node["id"] == 21)
        assert saved["showAdvanced"]
        assert saved["widgets_values"] == node["widgets_values"]
        person.keep_screen(editor, f"{path.stem}_nodes_2")
    finally:
        editor.reopen({"Comfy.VueNodes.Enabled": False})


@pytest.mark.parametrize("name", blueprints.NAMES)
def test_a_blueprint_is_taken_from_the_search_and_draws_with_the_demo_model(editor: Frontend, name: str) -> None:
    blueprints.draw_with(editor, name, f"blueprint_{name}")


@pytest.mark.skipif(not os.environ.get("REINS_FULL"), reason=FULL_ONLY)
def test_in_nodes_2_the_blueprints_draw_too(editor: Frontend) -> None:
    editor.reopen({"Comfy.VueNodes.Enabled": True})
    try:
        for name in blueprints.NAMES:
            blueprints.draw_with(editor, name, f"blueprint_{name}_nodes_2")
    finally:
        editor.reopen({"Comfy.VueNodes.Enabled": False})


@pytest.mark.parametrize("language", ["ko", "ja", "zh"])
def test_in_another_language_and_a_small_window_nodes_search_and_help_are_translated(
    editor: Frontend, language: str
) -> None:
    editor.reopen({"Comfy.Locale": language}, SMALL_WINDOW)
    names = {node: entry["display_name"] for node, entry in NODES[language].items()}
    example = ROOT / "example_workflows" / "demo_pag_perturbed_attention.json"
    person.drop(editor, f"{example.stem}_{language}", example.read_text(encoding="utf-8"))
    assert person.faults(editor) == []
    assert names[GUIDE["class_type"]] in person.titles(editor)
    person.at_most(editor, SHORT)
    assert person.run(editor)
    person.keep_screen(editor, f"window_{language}")
    for words in ("PAG", "perturbed-attention guidance"):
        assert names[GUIDE["class_type"]] in person.search(editor, words)[:FIRST]
    for node in sorted(page.parent.name for page in DOCS.glob(f"*/{language}.md")):
        shown = person.help_page(editor, node)
        written = (DOCS / node / f"{language}.md").read_text(encoding="utf-8")
        assert shown.heading == names[node] == written.splitlines()[0].removeprefix("# ")
        assert all(heading in shown.text for heading in re.findall(r"^## (.+)$", written, re.MULTILINE))
        assert len(shown.picture_widths) == written.count("![")
    person.keep_screen(editor, f"help_{language}")


def test_the_page_is_free_of_errors_and_asks_nobody_else(editor: Frontend) -> None:
    assert editor.errors == []
    assert editor.refused == set()
