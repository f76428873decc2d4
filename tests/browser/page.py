"""The real frontend in a headless Chromium: loads workflows and gives back what it makes of them.

A Chromium of the system is used (CHROMIUM names one): nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

Json: TypeAlias = Any  # what json.loads returns

READY_MS = 120_000
SETTLE_MS = 400
WINDOW: ViewportSize = {"width": 1600, "height": 900}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking")

# Stored for the user before the first page load, so that neither a tour nor a notice covers the canvas.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "99.0.0",
    "Comfy.Release.Status": "what's new seen",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MaximumFps": 5,  # a canvas without a graphics card costs a core
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts stay when a graph is seen from afar
}

AS_INSTALLED = {"LiteGraph.Canvas.MinFontSizeForLOD": 8}  # pixels. Smaller texts are not drawn

READY = """() => window.app?.graph && window.app.extensionManager
    && window.LiteGraph?.registered_node_types['KSampler']"""
# The frontend's curtain over a page that loads stays for good where it falls and rises within one frame.
LIFT_CURTAIN = """() => document.querySelectorAll('.p-blockui-mask.p-overlay-mask-leave')
    .forEach(mask => mask.remove())"""
UNKNOWN = """() => window.app.graph.nodes
    .filter(node => node.has_errors || !window.LiteGraph.registered_node_types[node.type])
    .map(node => node.type)"""
FIX_SEEDS = """() => window.app.graph.nodes
    .flatMap(node => node.widgets ?? [])
    .filter(widget => widget.name === 'control_after_generate')
    .forEach(widget => { widget.value = 'fixed' })"""


def find_chromium() -> str | None:
    """The executable of CHROMIUM, else the first browser on the path that Playwright can drive."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


class UnknownNodes(ValueError):
    """A workflow names nodes that the server does not have: they stand red in the editor."""


def as_text(content: Json) -> str:
    """The one way in which workflow files are written."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class Frontend:
    """A page with an open editor, in a browser that knows nothing of an earlier one."""

    def __init__(self, browser: Browser, url: str, post: Callable[[str, Json], None]) -> None:
        self.errors: list[str] = []
        self.refused: set[str] = set()
        self._browser = browser
        self._url = url
        self._post = post
        self.reopen(SETTINGS)

    def reopen(self, settings: Mapping[str, Json], window: ViewportSize = WINDOW) -> None:
        """Opens the editor after the user's settings were changed.

        Requests that leave the server are refused, and remembered.
        """
        for name, value in settings.items():
            self._post(f"/settings/{name}", value)
        for context in self._browser.contexts:
            context.close()
        self.page: Page = self._browser.new_context(viewport=window).new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route("**/*", self._only_this_server)
        self.page.goto(self._url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=READY_MS)
        self.page.wait_for_timeout(SETTLE_MS)
        self.page.evaluate(LIFT_CURTAIN)

    @contextlib.contextmanager
    def as_installed(self) -> Iterator[None]:
        """Opens the editor with its own limit to the size of texts, and after the block without one."""
        self.reopen(AS_INSTALLED)
        try:
            yield
        finally:
            self.reopen({name: SETTINGS[name] for name in AS_INSTALLED})

    def _only_this_server(self, route: Route) -> None:
        if route.request.url.startswith((self._url, "data:", "blob:")):
            route.continue_()
        else:
            self.refused.add(route.request.url)
            route.abort()

    def load(self, workflow: Json) -> None:
        """Loads a workflow in editor format, as opening its file does."""
        self.open(workflow)
        self.settle()

    def open(self, workflow: Json) -> None:
        """The same for a workflow that may name what the server does not have."""
        self.page.evaluate("async graph => { await window.app.loadGraphData(graph) }", workflow)

    def load_api(self, graph: Json, name: str) -> None:
        """Loads a graph in API format and arranges its nodes; seeds stay as they are from run to run."""
        self.page.evaluate("async ([graph, name]) => { await window.app.loadApiJson(graph, name) }", [graph, name])
        self.settle()
        self.page.evaluate("() => window.app.graph.arrange()")
        self.page.evaluate(FIX_SEEDS)

    def settle(self) -> None:
        """Waits until a loaded graph is drawn; raises UnknownNodes where it names what the server does not have."""
        self.page.wait_for_timeout(SETTLE_MS)
        if unknown := self.page.evaluate(UNKNOWN):
            raise UnknownNodes(f"nodes that the server does not know: {', '.join(unknown)}")

    def api_graph(self) -> Json:
        """What Run would queue.  Through JSON text: Playwright would turn undefined values into null."""
        text = self.page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)")
        return json.loads(text)

    def twin_of(self, workflow: Json) -> Json:
        """The API form of an editor workflow, in the order of node ids."""
        self.load(workflow)
        return self.twin()

    def twin(self) -> Json:
        """The API form of the open graph, in the order of node ids."""
        graph = self.api_graph()
        return {node_id: graph[node_id] for node_id in sorted(graph, key=lambda node_id: (len(node_id), node_id))}

    def workflow(self) -> Json:
        """What Save would write."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))


@contextlib.contextmanager
def open_frontend(url: str, post: Callable[[str, Json], None]) -> Iterator[Frontend]:
    """The editor of the server at `url`; `post` sends it a JSON body."""
    executable = find_chromium()
    if executable is None:
        raise FileNotFoundError(f"no browser found: install Chromium or set CHROMIUM; tried {', '.join(BROWSERS)}")
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    flags = [*FLAGS, "--no-sandbox"] if is_root else list(FLAGS)  # Chromium's sandbox does not start as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=flags)
        try:
            yield Frontend(browser, url, post)
        finally:
            browser.close()
