"""The templates browser as a person uses it: the cards of a pack, and the first one that a search finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from playwright.sync_api import expect

from .person import PATIENCE_MS, SEARCH_MS

if TYPE_CHECKING:
    from .page import Frontend


class Template(NamedTuple):
    """A card in the templates browser."""

    name: str
    thumbnail_width: int


def take_first(editor: Frontend, pack: str, words: str) -> str:
    """Opens the templates browser by its button, types words into its search, and clicks the first card of a pack.

    Returns the name of the card.
    """
    page = editor.page
    page.get_by_role("button", name="Templates").first.click()
    dialog = page.get_by_role("dialog")
    entry = dialog.get_by_text(pack, exact=True).first
    entry.scroll_into_view_if_needed(timeout=PATIENCE_MS)
    entry.click()
    dialog.get_by_role("textbox").or_(dialog.get_by_role("searchbox")).first.fill(words)
    page.wait_for_timeout(2 * SEARCH_MS)
    card = dialog.locator("[data-testid^='template-workflow-']").first
    expect(card).to_be_visible(timeout=PATIENCE_MS)
    name = card.get_attribute("data-testid").removeprefix("template-workflow-")
    card.click()
    expect(dialog).to_have_count(0, timeout=PATIENCE_MS)
    editor.settle()
    return name


def all_of(editor: Frontend, pack: str) -> list[Template]:
    """Opens the part of a pack in the templates browser, scrolls through it and closes it: its cards."""
    page = editor.page
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog")
    entry = dialog.get_by_text(pack, exact=True).first
    entry.scroll_into_view_if_needed(timeout=PATIENCE_MS)
    entry.click()
    cards = dialog.locator("[data-testid^='template-workflow-']")
    expect(cards.first).to_be_visible(timeout=PATIENCE_MS)
    count = -1
    while count != cards.count():  # more are made as one scrolls down
        count = cards.count()
        cards.last.scroll_into_view_if_needed()
        page.wait_for_timeout(SEARCH_MS)
    found = []
    for card in cards.all():
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first
        expect(picture).to_be_visible(timeout=PATIENCE_MS)
        width = picture.evaluate("async image => { await image.decode(); return image.naturalWidth }")
        found.append(Template(card.get_attribute("data-testid").removeprefix("template-workflow-"), width))
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    return found
