"""What a person does in the editor: drop a file, press Run, look for a node, open its help and the templates."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect

if TYPE_CHECKING:
    from reins.demo.client import Graph

    from .page import Frontend, Json

SCREENS = os.environ.get("REINS_SCREENS")
PATIENCE_MS = 15_000
RUN_MS = 240_000
SEARCH_MS = 400  # lists follow what is typed, or scrolled, after a short while
DRAWN_MS = 1000
OPTIONAL = 7  # LiteGraph draws an optional input as a hollow circle

DROP = """([name, text]) => {
    const transfer = new DataTransfer()
    transfer.items.add(new File([text], name, { type: 'application/json' }))
    const canvas = document.querySelector('#graph-canvas')
    const { left, top, width, height } = canvas.getBoundingClientRect()
    const at = { clientX: left + width / 2, clientY: top + height / 2 }
    for (const type of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(
            new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: transfer, ...at }))
}"""
OPENED = "name => window.app.extensionManager.workflow.activeWorkflow?.filename === name"
FAULTS = """optional => window.app.graph.nodes.flatMap(node => {
    const kind = window.LiteGraph.registered_node_types[node.type]
    if (!kind) return [`${node.type}: unknown`]
    const definition = kind.nodeData?.input
    const known = Object.keys({ ...definition?.required, ...definition?.optional })
    const found = node.has_errors ? [`${node.type}: red`] : []
    for (const input of node.inputs ?? []) {
        if (definition && !known.includes(input.name)) found.push(`${node.type}: unknown input ${input.name}`)
        if (!input.widget && input.link == null && input.shape !== optional)
            found.push(`${node.type}: ${input.name} is not connected`)
    }
    for (const { name, value, options } of node.widgets ?? [])
        if (Array.isArray(options?.values) && !options.values.includes(value))
            found.push(`${node.type}: ${name} does not offer ${value}`)
    return found
})"""
AT_MOST = """limits => window.app.graph.nodes.flatMap(node => node.widgets ?? []).forEach(widget => {
    const limit = limits[widget.name]
    if (typeof limit === 'number') widget.value = Math.min(widget.value, limit)
    else if (limit !== undefined) widget.value = limit
})"""
SIDE_BAR = "Workspace.ToggleSidebarTab.workflows"
FIT = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
ZOOM_TO = """scale => {
    const canvas = window.app.canvas
    canvas.ds.scale = scale
    canvas.ds.offset = [200 / scale, 200 / scale]
    canvas.setDirty(true, true)
}"""
FAILURE = """() => window.app.extensionManager.lastExecutionError
    ?? window.app.extensionManager.lastNodeErrors ?? null"""
SHOWN = """() => {
    const imagesOf = node => {
        const drawn = document.querySelector(`.lg-node[data-node-id="${node.id}"]`)
        return drawn ? [...drawn.querySelectorAll('img')] : node.imgs ?? []
    }
    const shown = window.app.graph.nodes.filter(node => ['SaveImage', 'PreviewImage'].includes(node.type)).map(node =>
        [String(node.id), imagesOf(node).map(image => [image.naturalWidth, image.naturalHeight])])
    return shown.every(([, images]) => images.length && images.every(size => size[0] > 0)) && shown
}"""  # Nodes 2.0 are elements of the page, and tell the graph of a picture only if it is the only one
OVERLAPS = """() => {
    const boxes = window.app.graph.nodes.map(node => [node, node.getBounding()])
    const meet = ([ax, ay, aw, ah], [bx, by, bw, bh]) =>
        ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah
    return boxes.flatMap(([a, box], i) => boxes.slice(i + 1)
        .filter(([, other]) => meet(box, other))
        .map(([b]) => `${a.title} (${a.id}) lies over ${b.title} (${b.id})`))
}"""
CUT_OFF = """() => [...document.querySelectorAll('.comfy-markdown .tiptap')]
    .filter(text => text.scrollHeight > text.clientHeight).map(text => text.innerText)"""
PLACE = """type => {
    window.app.graph.clear()
    const node = window.LiteGraph.createNode(type)
    window.app.graph.add(node)
    window.app.canvas.centerOnNode(node)
    window.app.canvas.selectNode(node)
    return node.title
}"""
WIDTHS = """images => Promise.all(images.map(image => image.decode().then(() => image.naturalWidth)))"""


TOGGLE_APP = "() => window.app.extensionManager.command.execute('Comfy.ToggleLinear')"
WARNS = "Comfy.Workflow.ShowMissingModelsWarning"
LABELS = "buttons => buttons.map(button => button.ariaLabel)"


class RunFailed(Exception):
    """The editor reports an error of a run, or shows no picture in time."""


class HelpPage(NamedTuple):
    """The page in the side panel: its heading, its text, and the width in pixels of every picture that is loaded."""

    heading: str
    text: str
    picture_widths: list[int]


def drop(editor: Frontend, name: str, text: str) -> None:
    """Lets go of a file above the canvas; returns when it is open.  `name` is not to be open already."""
    editor.page.evaluate(DROP, [f"{name}.json", text])
    editor.page.wait_for_function(OPENED, arg=name, timeout=PATIENCE_MS)
    editor.settle()


def faults(editor: Frontend) -> list[str]:
    """What a person sees in red: unknown nodes and inputs, sockets that nothing leads to, values that are not offered.

    Host nodes without a definition of their own (notes, reroutes) have nothing to check.
    """
    return editor.page.evaluate(FAULTS, OPTIONAL)


def at_most(editor: Frontend, limits: Mapping[str, int | str]) -> None:
    """Lowers every widget of these names to a number, or sets it to a text."""
    editor.page.evaluate(AT_MOST, dict(limits))


def saving(graph: Graph) -> set[str]:
    """The nodes of a graph in API form that show pictures when it ran."""
    return {node for node, content in graph.items() if content["class_type"] in ("SaveImage", "PreviewImage")}


def run(editor: Frontend) -> dict[str, list[list[int]]]:
    """Presses Run and waits for the pictures on the nodes: (width, height) of each, by node id."""
    page = editor.page
    page.evaluate(FIT)  # a node loads its pictures when it is drawn
    page.get_by_test_id("queue-button").first.click()
    try:
        shown = page.wait_for_function(f"() => ({SHOWN})() || ({FAILURE})() && []", timeout=RUN_MS).json_value()
    except PlaywrightTimeout as error:
        raise RunFailed(f"no picture on {page.evaluate(SHOWN)}") from error
    if failure := page.evaluate(FAILURE):
        raise RunFailed(str(failure))
    return dict(shown)


def fit(editor: Frontend) -> None:
    """Shows the whole graph: Nodes 2.0 draws what is in view."""
    editor.page.evaluate(FIT)
    editor.page.wait_for_timeout(DRAWN_MS)


def zoom(editor: Frontend) -> float:
    """The size at which the graph is shown. Texts have 14 pixels at 1."""
    return editor.page.evaluate("() => window.app.canvas.ds.scale")


def zoom_to(editor: Frontend, scale: float) -> None:
    """Shows the graph in this size, with its origin near the top left of the canvas."""
    editor.page.evaluate(ZOOM_TO, scale)
    editor.page.wait_for_timeout(DRAWN_MS)


def can_read(editor: Frontend, heading: str) -> bool:
    """Whether a note with this heading shows it."""
    return editor.page.get_by_role("heading", name=heading).first.is_visible()


def pixels(editor: Frontend, colour: str) -> int:
    """How many pixels of the screen have this colour."""
    with Image.open(io.BytesIO(editor.page.screenshot())) as screen:
        shown = np.asarray(screen.convert("RGB")).astype(int)
    sought = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(shown - sought).max(-1) < 6).sum())


def keep_screen(editor: Frontend, name: str) -> None:
    """Writes what the screen shows, once the canvas is drawn, where REINS_SCREENS names a folder."""
    if SCREENS:
        editor.page.evaluate("() => window.app.canvas.setDirty(true, true)")
        editor.page.wait_for_timeout(DRAWN_MS)
        editor.page.screenshot(path=Path(SCREENS) / f"{name}.png")


def titles(editor: Frontend) -> list[str]:
    """What stands above the nodes."""
    return editor.page.evaluate("() => window.app.graph.nodes.map(node => node.title)")


def overlaps(editor: Frontend) -> list[str]:
    """Pairs of nodes that cover each other, with the pictures that they show."""
    return editor.page.evaluate(OVERLAPS)


def cut_off(editor: Frontend) -> list[str]:
    """The notes that do not fit their box: a person would have to scroll."""
    return editor.page.evaluate(CUT_OFF)


def shown_widgets(editor: Frontend, node: str) -> set[str]:
    """The words on a node as Nodes 2.0 draws it, among them the names of its widgets."""
    return set(editor.page.locator(f"[data-node-id='{node}']").inner_text().splitlines())


def show_advanced(editor: Frontend, node: str) -> None:
    """Presses *Show advanced inputs* at the foot of a node, which Nodes 2.0 alone has."""
    editor.page.locator(f"[data-node-id='{node}']").get_by_test_id("advanced-inputs-button").click()
    editor.page.wait_for_timeout(SEARCH_MS)


def app_controls(editor: Frontend) -> list[str]:
    """Enters app mode and leaves it: the names of the controls, from top to bottom."""
    page = editor.page
    page.evaluate(TOGGLE_APP)
    controls = page.get_by_test_id("app-mode-widget-item")
    expect(controls.first).to_be_visible(timeout=PATIENCE_MS)
    names = controls.get_by_test_id("builder-widget-label").all_inner_texts()
    page.evaluate(TOGGLE_APP)
    expect(controls).to_have_count(0, timeout=PATIENCE_MS)
    return names


def offered_downloads(editor: Frontend, workflow: Json) -> list[str]:
    """Opens a workflow with warnings on, and the list of missing models: what the download buttons are called."""
    editor.reopen({WARNS: True})
    editor.open(workflow)
    page = editor.page
    page.get_by_test_id("error-overlay-see-errors").first.click(timeout=PATIENCE_MS)
    buttons = page.get_by_test_id("missing-model-download")
    expect(buttons.first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_test_id("missing-model-download-all")).to_be_visible()
    names = buttons.evaluate_all(LABELS)
    editor.reopen({WARNS: False})
    return names


def saved_workflows(editor: Frontend, folder: str) -> list[str]:
    """Opens the workflows in the side bar and a folder among them, and closes it: their names from top to bottom."""
    page = editor.page
    page.evaluate(f"() => window.app.extensionManager.command.execute('{SIDE_BAR}')")
    entry = page.get_by_role("treeitem").filter(has_text=folder).first
    entry.get_by_text(folder, exact=True).click(timeout=PATIENCE_MS)
    names = entry.get_by_role("treeitem")
    expect(names.first).to_be_visible(timeout=PATIENCE_MS)
    found = [name.strip() for name in names.all_inner_texts()]
    page.evaluate(f"() => window.app.extensionManager.command.execute('{SIDE_BAR}')")
    return found


def search(editor: Frontend, words: str) -> list[str]:
    """The titles that the node search offers for these words, best first."""
    page = editor.page
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill(words)
    results = dialog.get_by_test_id("result-item")
    expect(results.first).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(SEARCH_MS)
    titles = [text.splitlines()[0] for text in results.all_inner_texts()]
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    return titles


def help_page(editor: Frontend, node_type: str) -> HelpPage:
    """Places a node on an empty canvas and presses the i above it; its page is headed by the node's title."""
    page = editor.page
    title = page.evaluate(PLACE, node_type)
    content = page.locator(".node-help-content")
    if not content.is_visible():
        page.get_by_test_id("info-button").click()
    expect(content.locator("h1").first).to_have_text(title, timeout=PATIENCE_MS)
    widths = content.locator("img").evaluate_all(WIDTHS)
    return HelpPage(title, content.inner_text(), widths)
