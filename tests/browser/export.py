"""Turns example workflows into their API twins, and the other way round, by the real frontend.

    python tests/browser/export.py                            example_workflows/*.json -> demo/api/*.json
    python tests/browser/export.py --layout GRAPH.json ...    API graphs -> example_workflows/<same name>.json

COMFYUI_PATH names the ComfyUI to use, else the newest in the cache of dev.py; run it in that cache's environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from page import Frontend, Json, UnknownNodes, as_text, open_frontend  # noqa: E402

from demo.graphs import API_FOLDER, offer_names  # noqa: E402
from demo.host import Host, HostSettings  # noqa: E402
from tools.hosts import newest_host  # noqa: E402

EXAMPLES = ROOT / "example_workflows"


@contextlib.contextmanager
def frontend() -> Iterator[Frontend]:
    """The editor of a server of our own, which lists the files that the examples name."""
    with tempfile.TemporaryDirectory(prefix="reins-export-", ignore_cleanup_errors=True) as base:
        settings = HostSettings(newest_host().path, Path(base))
        offer_names(settings.base)
        with Host(settings) as host, open_frontend(host.url, host.client.post) as editor:
            yield editor


def editor_file_of(editor: Frontend, graph: Json, name: str) -> Json:
    """The editor form of an API graph, arranged; its id depends on the name alone, so that a rerun changes nothing."""
    editor.load_api(graph, name)
    workflow = editor.workflow()
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"reins/{name}"))
    workflow.get("extra", {}).pop("ds", None)  # where the camera stood
    return workflow


def convert(editor: Frontend, source: Path, target: Path, is_layout: bool) -> None:
    content = json.loads(source.read_text(encoding="utf-8"))
    made = editor_file_of(editor, content, source.stem) if is_layout else editor.twin_of(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(as_text(made), encoding="utf-8")
    print(f"{source} -> {target}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", nargs="+", type=Path, metavar="GRAPH", help="API graphs to make workflows of")
    options = parser.parse_args()
    sources = options.layout or sorted(EXAMPLES.glob("*.json"))
    folder = EXAMPLES if options.layout else API_FOLDER
    if not sources:
        print("there is no workflow in example_workflows", file=sys.stderr)
        return 1
    failed = 0
    with frontend() as editor:
        for source in sources:
            try:
                convert(editor, source, folder / source.name, bool(options.layout))
            except UnknownNodes as error:
                failed += 1
                print(f"{source}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
