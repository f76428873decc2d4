"""Examples for released models in the real editor, run at the real widths on stand-ins without trained weights.

Models of a billion numbers on a CPU: only `python3 dev.py test --full` runs them, and REINS_SCREENS, which names a
folder for their screens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from PIL import Image  # noqa: E402
from reins.demo.graphs import EXAMPLE_CHECKPOINT, EXAMPLE_FILES, load_graphs, needs_more_files, offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings, weightless_arguments  # noqa: E402
from reins.tests.browser import person, stand_ins  # noqa: E402
from reins.tests.browser.page import find_chromium, open_frontend  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402

if TYPE_CHECKING:
    from reins.demo.client import Graph
    from reins.tests.browser.page import Frontend

pytestmark = pytest.mark.browser

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
ASKED_FOR = bool(person.SCREENS or os.environ.get("REINS_FULL"))
GRAPHS = load_graphs()
LEFT_OUT = {
    "cfg_zero_star_sd35": "SD3.5 with its T5 is 15 GB, and more on a CPU",
    "slg_skip_layers_sd35": "SD3.5 with its T5 is 15 GB, and more on a CPU",
    "nag_negative_without_cfg_flux": "Flux with its T5 is 29 GB, and more on a CPU",
    "ip_adapter_sd35": "SD3.5 Large with its T5 is 24 GB, and more on a CPU",
    "ip_adapter_flux_xlabs": "Flux with its T5 is 29 GB, and more on a CPU",
    "ip_adapter_flux_instantx": "Flux with its T5 is 29 GB, and more on a CPU",
    "pag_perturbed_attention_z_image": "Z-Image with its text encoder is 20 GB, and more on a CPU",
    "slg_stg_skip_layers_wan21": "the text encoder of Wan alone is 7 GB, and more on a CPU",
}
SMALL = {"steps": 2, "width": 64, "height": 64, "video_frames": 3, "frames": 2, "batch_size": 2}
ARGUMENTS = ("--fp16-unet",)  # as a graphics card would hold it: in single precision SDXL alone has 10 GB


class Desk(NamedTuple):
    """An open editor, and the server behind it."""

    editor: Frontend
    host: Host


def _is_plain(path: Path) -> bool:
    """Whether a picture has one colour, as of numbers that are not finite."""
    with Image.open(path) as picture:
        return all(low == high for low, high in picture.convert("RGB").getextrema())


def _is_for_released_files(graph: Graph) -> bool:
    """Whether a checkpoint of SD1.5 alone does not do."""
    named = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    other = named & set(EXAMPLE_FILES["models/checkpoints"]) - {EXAMPLE_CHECKPOINT}
    return needs_more_files(graph) or bool(other)


CASES = [
    pytest.param(name, marks=[pytest.mark.skip(reason=LEFT_OUT[name])] if name in LEFT_OUT else [])
    for name, graph in GRAPHS.items()
    if _is_for_released_files(graph)
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    arguments = (*weightless_arguments(host_folder()), *ARGUMENTS)
    settings = HostSettings(host_folder(), tmp_path_factory.mktemp("released"), arguments=arguments)
    offer_names(settings.base)
    with Host(settings) as host, open_frontend(host.url, host.client.post) as editor:
        yield Desk(editor, host)


@pytest.mark.skipif(not ASKED_FOR, reason="models of full size: only with dev.py test --full, or REINS_SCREENS")
@pytest.mark.parametrize("name", CASES)
def test_an_example_for_released_files_runs_on_stand_ins(desk: Desk, name: str) -> None:
    graph, editor = GRAPHS[name], desk.editor
    base = desk.host.settings.base
    stand_ins.write(base, graph)
    desk.host.client.forget()  # before the next run begins
    person.drop(editor, name, (EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    assert person.faults(editor) == []
    person.at_most(editor, SMALL)
    before = set(base.glob("output/**/*.png"))
    assert person.saving(graph) <= set(person.run(editor))
    assert not [path.name for path in set(base.glob("output/**/*.png")) - before if _is_plain(path)]
    person.keep_screen(editor, name)
    assert person.overlaps(editor) == []


def test_every_file_of_the_examples_has_a_stand_in() -> None:
    of_examples = {f"{folder}/{name}" for folder, names in EXAMPLE_FILES.items() for name in names}
    loaded = [value for name in LEFT_OUT for node in GRAPHS[name].values() for value in node["inputs"].values()]
    of_left_out = {file for file in of_examples if file.split("/", 2)[-1] in loaded}
    assert of_examples - of_left_out <= {*stand_ins.MODELS, *(f"input/{name}" for name in stand_ins.PICTURES)}
