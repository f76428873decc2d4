"""Every ComfyUI that the tests know, with the editor that it pins: examples open there, and one is run.

The other tests of this folder open the newest ComfyUI. `python3 dev.py test --full` opens the older ones too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from reins.demo.graphs import EXAMPLE_FILES, START, load_graphs, offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings, weightless_arguments  # noqa: E402
from reins.tests.browser import person, stand_ins  # noqa: E402
from reins.tests.browser.page import AS_INSTALLED, find_chromium, open_frontend  # noqa: E402
from reins.tests.helpers.colours import ours  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402
from reins.tools.frontend import own_frontend  # noqa: E402
from reins.tools.hosts import cached_hosts  # noqa: E402
from reins.tools.screen import DevError  # noqa: E402

if TYPE_CHECKING:
    from reins.tests.browser.page import Frontend
    from reins.tools.hosts import Host as Folder

FULL = bool(os.environ.get("REINS_FULL"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FULL, reason="starts five servers: only with dev.py test --full"),
]
OLDER = [host for host in cached_hosts() if host.path != host_folder()] if FULL else []
EXAMPLES = ("demo_unicon_depth_to_image", "everything_sd15", START)
OF_THE_EDITOR = "Cannot read properties of undefined (reading 'id')"  # said by 1.27 and 1.32 without any pack too
TEMPLATES_OF_ONE_FOLDER = (0, 3, 64)  # later ones read the templates' package in parts


@pytest.fixture(scope="module", params=OLDER, ids=str)
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    older: Folder = request.param
    try:
        arguments = (*weightless_arguments(older.path), "--front-end-root", str(own_frontend(older.path)))
    except DevError as error:
        pytest.skip(f"needs the editor of {older}: {error}")
    base = tmp_path_factory.mktemp("own")
    environment = {"PYTHONPATH": str(empty_templates(base))} if older.version <= TEMPLATES_OF_ONE_FOLDER else {}
    settings = HostSettings(older.path, base, arguments=arguments, environment=environment)
    offer_names(base)
    stand_ins.draw(base, set(EXAMPLE_FILES["input"]))
    with Host(settings) as host, open_frontend(host.url, host.client.post) as frontend:
        frontend.reopen(AS_INSTALLED)
        yield frontend


def empty_templates(base: Path) -> Path:
    """A folder for PYTHONPATH with a templates' package as 0.3.64 reads it. The installed one is newer."""
    folder = base / "python" / "comfyui_workflow_templates"
    (folder / "templates").mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder.parent


def drop(editor: Frontend, name: str) -> None:
    text = (Path(__file__).parents[2] / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    person.drop(editor, f"{name}_own", text)


def test_examples_have_no_fault_and_run_shows_a_picture(editor: Frontend) -> None:
    for name in EXAMPLES:
        drop(editor, name)
        assert person.faults(editor) == [], name
    person.fit(editor)
    assert person.can_read(editor, "Start here: press Run")  # though texts of this size are not drawn
    person.at_most(editor, {"steps": 2})
    assert person.saving(load_graphs([START])[START]) <= set(person.run(editor))
    assert set(editor.errors) <= {OF_THE_EDITOR}


def test_a_socket_of_ours_has_its_colour(editor: Frontend) -> None:
    drop(editor, "demo_ip_adapter")  # has a wire of a type of ours
    person.fit(editor)
    assert person.pixels(editor, ours()["IPADAPTER"]) > 10
