"""Moves the nodes of the examples apart until they fit, with classic nodes and Nodes 2.0, pinned and newest editor.

    python tests/browser/space_examples.py [EXAMPLE ...]      rewrites example_workflows/*.json, or these of them

COMFYUI_PATH and the environment are those of export.py. What already fits stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from demo.inside import load_pack  # noqa: E402

load_pack()

from reins.demo.graphs import offer_names  # noqa: E402
from reins.demo.host import Host, HostSettings  # noqa: E402
from reins.tests.browser.page import Frontend, Json, as_text, open_frontend  # noqa: E402
from reins.tests.browser.rectangles import MODES, Rectangle, rectangles, saved_rectangle  # noqa: E402
from reins.tests.browser.spacing import spaced  # noqa: E402
from reins.tests.browser.wires import routed  # noqa: E402
from reins.tools.frontend import newest_frontend  # noqa: E402
from reins.tools.hosts import newest_host  # noqa: E402

EXAMPLES = ROOT / "example_workflows"


NOTE = "MarkdownNote"
PREVIEWS = ("KSampler", "SamplerCustom")  # show what is being drawn, as a square
ROUTED = (
    "everything_sd15",
    "demo_everything",
    "unclip_sd21",
    "demo_ip_adapter_regions",
)  # many wires would cross groups of others
LOW = 100  # a note of this height shows how much its text needs
AIR = 10
TEXT = """() => {
    const text = document.querySelector('.comfy-markdown .tiptap')
    const last = text.lastElementChild.getBoundingClientRect(), box = text.getBoundingClientRect()
    const scale = box.height / text.offsetHeight
    return (last.bottom - box.top) / scale + text.scrollTop - text.offsetHeight
}"""


def rooms(editor: Frontend, workflow: Json, mode: str) -> dict[str, Rectangle]:
    """What each node of an example covers relative to its place, as saved or drawn; a note what its text needs.

    Samplers get room for their preview. Nodes that show pictures are saved as large as they get.
    """
    workflow = json.loads(json.dumps(workflow))
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] == NOTE:
            node["size"][1] = LOW
    editor.load(workflow)
    drawn = rectangles(editor, mode)
    found = {}
    for node, content in nodes.items():
        box = _relative(saved_rectangle(content), content).round(_relative(drawn[node], content))
        if content["type"] == NOTE and mode == "classic":
            box = box._replace(bottom=box.bottom + max(0, editor.page.evaluate(TEXT)) + AIR)
        if content["type"] in PREVIEWS:
            box = box._replace(bottom=box.bottom + content["size"][0])
        found[node] = Rectangle(*map(round, box))
    return found


def _relative(box: Rectangle, node: Json) -> Rectangle:
    x, y = node["pos"]
    return _absolute(box, -x, -y)


def measure(arguments: tuple[str, ...], examples: Sequence[Path], known: dict[str, dict[str, Rectangle]]) -> None:
    """Adds to `known`, by example, what its nodes cover in both modes of one editor."""
    with tempfile.TemporaryDirectory(prefix="reins-spacing-", ignore_cleanup_errors=True) as base:
        settings = HostSettings(newest_host().path, Path(base), arguments=arguments)
        offer_names(settings.base)
        with Host(settings) as host, open_frontend(host.url, host.client.post) as editor:
            for mode, wanted in MODES.items():
                editor.reopen(wanted)
                for path in examples:
                    found = rooms(editor, json.loads(path.read_text(encoding="utf-8")), mode)
                    before = known.setdefault(path.stem, {})
                    for node, box in found.items():
                        before[node] = before[node].round(box) if node in before else box
                    print(mode, path.stem, flush=True)


def arranged(workflow: Json, shown: dict[str, Rectangle], is_routed: bool) -> Json:
    """The workflow with notes as high as their text, with all nodes apart, and with reroutes if they are asked for."""
    workflow = spaced(workflow, shown)  # by the sizes as saved, in which nothing overlaps yet
    for node in workflow["nodes"]:
        if node["type"] == NOTE:
            node["size"][1] = math.ceil(shown[str(node["id"])].bottom)
    if not is_routed:
        return workflow
    places = {str(node["id"]): node["pos"] for node in workflow["nodes"]}
    return routed(workflow, {node: _absolute(box, *places[node]) for node, box in shown.items()})


def _absolute(box: Rectangle, x: float, y: float) -> Rectangle:
    return Rectangle(box.left + x, box.top + y, box.right + x, box.bottom + y)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="names of examples, all if none is given")
    options = parser.parse_args()
    examples = [EXAMPLES / f"{name}.json" for name in options.examples] or sorted(EXAMPLES.glob("*.json"))
    known: dict[str, dict[str, Rectangle]] = {}
    for arguments in ((), ("--front-end-root", str(newest_frontend()))):
        measure(arguments, examples, known)
    for path in examples:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        workflow = arranged(workflow, known[path.stem], path.stem in ROUTED)
        path.write_text(as_text(workflow), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
