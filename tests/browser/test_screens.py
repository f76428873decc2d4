"""Every example on the screen: classic nodes and Nodes 2.0, in the editor that ComfyUI pins and in the newest one.

`python3 dev.py test --full` does all of it. Else a seeded part runs in the newest editor alone: test_browser.py drops
every example into the pinned one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from reins.demo.graphs import EXAMPLE_FILES, START, load_graphs, offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings, weightless_arguments  # noqa: E402
from reins.tests.browser import person, stand_ins  # noqa: E402
from reins.tests.browser.page import find_chromium, open_frontend  # noqa: E402
from reins.tests.browser.rectangles import MODES, faults, rectangles  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402
from reins.tools.frontend import newest_frontend  # noqa: E402
from reins.tools.screen import DevError  # noqa: E402

if TYPE_CHECKING:
    from reins.tests.browser.page import Frontend, Json

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
FULL = bool(os.environ.get("REINS_FULL"))
GRAPHS = load_graphs()
EDITORS = ("pinned", "newest") if FULL else ("newest",)
MODES_TO_RUN = list(MODES) if FULL else ["vue"]
EACH = 36  # one example in so many in the continuous run
APPS = [START, *(f"demo_{name}" for name in (
    "pag_perturbed_attention", "ip_adapter", "controlnext", "unicon_depth_to_image",
))]  # fmt: skip
DOWNLOADS = "ip_adapter_sd15"


def chosen(names: list[str]) -> list[str]:
    """The first one, and one in EACH of the others, always the same; all of them in a full run."""
    return [name for i, name in enumerate(names) if FULL or i == 0 or crc32(name.encode()) % EACH == 0]


class Screen(NamedTuple):
    """An open editor in one mode."""

    editor: Frontend
    mode: str


def example(name: str) -> Json:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=EDITORS)
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    arguments = weightless_arguments(host_folder())
    if request.param == "newest":
        try:
            arguments += ("--front-end-root", str(newest_frontend()))
        except DevError as error:
            pytest.skip(f"needs the newest editor: {error}")
    settings = HostSettings(host_folder(), tmp_path_factory.mktemp("screens"), arguments=arguments)
    offer_names(settings.base)
    stand_ins.draw(settings.base, set(EXAMPLE_FILES["input"]))
    with Host(settings) as host, open_frontend(host.url, host.client.post) as frontend:
        yield frontend


@pytest.fixture(scope="module", params=list(MODES))
def screen(request: pytest.FixtureRequest, editor: Frontend) -> Iterator[Screen]:
    editor.reopen(MODES[request.param])
    said: list[str] = []
    editor.page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    yield Screen(editor, request.param)
    assert said == []
    assert editor.errors == []
    assert editor.refused == set()


@pytest.mark.parametrize("name", chosen(list(GRAPHS)))
def test_nodes_have_room_and_stay_in_their_group(screen: Screen, name: str) -> None:
    workflow = example(name)
    person.drop(screen.editor, f"{name}_{screen.mode}", json.dumps(workflow))
    assert person.faults(screen.editor) == []
    person.keep_screen(screen.editor, f"{name}_{screen.mode}")
    assert faults(workflow, rectangles(screen.editor, screen.mode)) == []


@pytest.mark.parametrize("screen", MODES_TO_RUN, indirect=True)
@pytest.mark.parametrize("name", [name for name in GRAPHS if name.startswith("demo_")] if FULL else [START])
def test_run_shows_pictures_that_have_room(screen: Screen, name: str) -> None:
    workflow = example(name)
    person.drop(screen.editor, f"{name}_{screen.mode}_run", json.dumps(workflow))
    person.at_most(screen.editor, {"steps": 2})
    assert person.saving(GRAPHS[name]) <= set(person.run(screen.editor))
    assert faults(workflow, rectangles(screen.editor, screen.mode)) == []


@pytest.mark.parametrize("name", APPS)
def test_the_controls_and_pictures_of_an_app_are_in_its_graph(name: str) -> None:
    app = example(name)["extra"]["linearData"]
    graph = GRAPHS[name]
    assert 3 <= len(app["inputs"]) <= 6
    for node, control, settings in app["inputs"]:
        value = graph[str(node)]["inputs"][control]
        assert not isinstance(value, list)  # not a link
        assert settings["description"]  # two controls may have the same name
    assert {str(node) for node in app["outputs"]} <= person.saving(graph)
    assert app["outputs"]


def test_no_other_example_is_an_app() -> None:
    assert sorted(APPS) == [name for name in GRAPHS if "linearData" in example(name)["extra"]]


@pytest.mark.parametrize("name", chosen(APPS))
def test_an_app_shows_its_controls(screen: Screen, name: str) -> None:
    workflow = example(name)
    person.drop(screen.editor, f"{name}_{screen.mode}_app", json.dumps(workflow))
    shown = person.app_controls(screen.editor)
    person.keep_screen(screen.editor, f"{name}_{screen.mode}_app")
    assert shown == [control for _, control, _ in workflow["extra"]["linearData"]["inputs"]]


@pytest.mark.skipif(not FULL, reason="opens the editor anew, twice: only with dev.py test --full")
def test_missing_files_are_offered_for_download(screen: Screen) -> None:
    workflow, names = example(DOWNLOADS), []
    for node in workflow["nodes"]:
        for offer in node["properties"].get("models", []):
            missing = f"missing-{offer['name']}"  # the others lie in the server's folders, empty
            node["widgets_values"] = [missing if value == offer["name"] else value for value in node["widgets_values"]]
            offer["name"] = missing
            names.append(missing)
    assert len(names) == 3
    offered = person.offered_downloads(screen.editor, workflow)
    assert sorted(text.removeprefix("Download ") for text in offered) == sorted(names)
    screen.editor.refused.clear()  # the editor has asked for their sizes
