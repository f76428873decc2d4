"""The sockets and wires of our own types on the screen are in our colours, unless a palette or another pack has one.

The continuous run takes the dark palette and the pinned editor alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from reins.demo.graphs import offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings, weightless_arguments  # noqa: E402
from reins.tests.browser import person  # noqa: E402
from reins.tests.browser.page import find_chromium, open_frontend  # noqa: E402
from reins.tests.browser.rectangles import MODES  # noqa: E402
from reins.tests.helpers.colours import ours  # noqa: E402
from reins.tests.helpers.named_host import host_folder  # noqa: E402
from reins.tools.frontend import newest_frontend  # noqa: E402

if TYPE_CHECKING:
    from reins.tests.browser.page import Frontend

pytestmark = pytest.mark.browser

FULL = bool(os.environ.get("REINS_FULL"))
EXAMPLE = "demo_ip_adapter"  # has one wire of a type of ours
TYPE = "IPADAPTER"
GREEN = "#10ff20"  # no palette has it
OWN_PALETTE = {
    "id": "own",
    "name": "Own",
    "colors": {"node_slot": {TYPE: GREEN}, "litegraph_base": {}, "comfy_base": {}},
}
AS_ANOTHER_PACK = f"""() => {{
    window.LGraphCanvas.link_type_colors['{TYPE}'] = '{GREEN}'
    window.app.canvas.default_connection_color_byType['{TYPE}'] = '{GREEN}'
    document.documentElement.style.setProperty('--color-datatype-{TYPE}', '{GREEN}')
}}"""


@pytest.fixture(scope="module", params=("pinned", "newest") if FULL else ("pinned",))
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    if find_chromium() is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM")
    arguments = weightless_arguments(host_folder())
    if request.param == "newest":
        arguments += ("--front-end-root", str(newest_frontend()))
    settings = HostSettings(host_folder(), tmp_path_factory.mktemp("c"), arguments=arguments)
    offer_names(settings.base)
    with Host(settings) as host, open_frontend(host.url, host.client.post) as frontend:
        yield frontend


def opened(editor: Frontend, mode: str, palette: str) -> None:
    editor.reopen({**MODES[mode], "Comfy.CustomColorPalettes": {"own": OWN_PALETTE}, "Comfy.ColorPalette": palette})
    text = (Path(__file__).parents[2] / "example_workflows" / f"{EXAMPLE}.json").read_text(encoding="utf-8")
    person.drop(editor, f"{EXAMPLE}_{mode}_{palette}", json.dumps(json.loads(text)))


@pytest.mark.parametrize("palette", ["dark", "light"] if FULL else ["dark"])
@pytest.mark.parametrize("mode", MODES)
def test_a_socket_of_ours_has_its_colour_in_both_palettes(editor: Frontend, mode: str, palette: str) -> None:
    opened(editor, mode, palette)
    assert person.pixels(editor, ours()[TYPE]) > 10
    assert person.pixels(editor, GREEN) == 0
    assert editor.errors == []


@pytest.mark.parametrize("mode", MODES)
def test_a_palette_that_names_our_type_wins(editor: Frontend, mode: str) -> None:
    opened(editor, mode, "own")
    assert person.pixels(editor, GREEN) > 10
    assert person.pixels(editor, ours()[TYPE]) == 0


@pytest.mark.skipif(not FULL, reason="opens the editor anew: only with dev.py test --full")
@pytest.mark.parametrize("mode", MODES)
def test_the_colour_that_another_pack_gives_the_type_wins(editor: Frontend, mode: str) -> None:
    opened(editor, mode, "dark")
    editor.page.evaluate(AS_ANOTHER_PACK)
    editor.page.evaluate("() => window.app.canvas.setDirty(true, true)")
    editor.page.wait_for_timeout(600)
    assert person.pixels(editor, GREEN) > 10
