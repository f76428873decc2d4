"""The pack in the real editor: what a person sees who opens an example."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from reins.demo.graphs import EXAMPLE_CHECKPOINT, load_graphs, offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings  # noqa: E402
from reins.tests.browser.page import UnknownNodes, as_text, find_chromium, open_frontend  # noqa: E402

if TYPE_CHECKING:
    from reins.tests.browser.page import Frontend

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
GUIDE = {
    "class_type": "Reins_PerturbedAttentionGuidance",
    "inputs": {"model": ["4", 0], "scale": 2.5, "start_percent": 0.1, "end_percent": 0.9, "layers": "m0,u0"},
}
LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": EXAMPLE_CHECKPOINT}}


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """One open editor.  Not for the session: while it is open, no other test of this process can use asyncio."""
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    comfy = Path(os.environ["COMFYUI_PATH"].split(os.pathsep)[0]).resolve()
    settings = HostSettings(comfy, tmp_path_factory.mktemp("browser"))
    offer_names(settings.base)
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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_and_its_api_twin_is_up_to_date(editor: Frontend, path: Path) -> None:
    twin = editor.twin_of(json.loads(path.read_text(encoding="utf-8")))
    written = as_text(*load_graphs([path.stem]).values())
    assert as_text(twin) == written, "run tests/browser/export.py"


def test_every_api_graph_has_an_example() -> None:
    assert sorted(load_graphs()) == [path.stem for path in EXAMPLES]


def test_the_page_is_free_of_errors_and_asks_nobody_else(editor: Frontend) -> None:
    assert editor.errors == []
    assert editor.refused == set()
