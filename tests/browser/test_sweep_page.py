"""The page of a sweep, opened from the disk: rows and columns to choose, the rest on hover, the picture on a click."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

for module in ("playwright", "aiohttp"):
    pytest.importorskip(module, reason=f"{module} is in requirements-dev.txt")

from playwright.sync_api import Page, sync_playwright  # noqa: E402
from reins.sweep.choice import choose  # noqa: E402
from reins.sweep.drive import Drive  # noqa: E402
from reins.sweep.outcome import File, Outcome  # noqa: E402
from reins.sweep.page import write_page  # noqa: E402
from reins.sweep.plan import make_plan, read_axes  # noqa: E402
from reins.sweep.records import Records  # noqa: E402
from reins.tests.browser.page import find_chromium  # noqa: E402
from reins.tests.helpers.sweeps import INFO, StandIn, drawn, small_graph  # noqa: E402

pytestmark = pytest.mark.browser
TEXTS = ("PAG.scale=0,1.5,3", "KSampler.seed=0:2", "Positive.text=<b>cat</b>,#dog?", "KSampler.steps=4")


def answer(row) -> Outcome:
    if row.values[:3] == (3.0, 1, "#dog?"):
        return Outcome(row.key, "a worker", error="node 3: no")
    return Outcome(row.key, "a worker", 2.5, (File("drawn", ".png", drawn("red")),))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip("needs a Chromium")
    folder, graph = tmp_path_factory.mktemp("sweep #1"), small_graph()  # a name that an address has to spell otherwise
    plan = make_plan(graph, read_axes(graph, TEXTS), INFO)
    records = Records(folder, plan)
    Drive(plan, records, lambda: None).run(StandIn(answer), lambda text: None)
    write_page(plan, records, choose(plan), "A sweep")
    flags = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.goto((folder / "index.html").as_uri())
        yield page
        browser.close()
    assert wrong == []


def heads(page: Page) -> tuple[list[str], list[str]]:
    return page.locator("thead th").all_text_contents()[1:], page.locator("tbody th").all_text_contents()


def test_the_first_settings_that_vary_are_rows_and_columns(page):
    assert page.title() == "A sweep"
    assert heads(page) == (
        ["KSampler.seed 0", "KSampler.seed 1"],
        ["PAG.scale 0", "PAG.scale 1.5", "PAG.scale 3"],
    )
    assert page.locator("td").count() == 6
    assert page.locator("td img").count() == 11
    assert page.locator(".error").all_text_contents() == ["node 3: no"]
    assert page.inner_text("#counts") == "11 of 12 prompts have their pictures, 1 failed · KSampler.steps 4"


def test_every_picture_is_found_on_the_disk(page):
    page.wait_for_function("[...document.querySelectorAll('td img')].every((image) => image.naturalWidth === 8)")


def test_other_rows_and_columns_and_one_value_of_the_rest_can_be_chosen(page):
    page.select_option("form label >> nth=0 >> select", label="Positive.text")
    page.select_option("form label >> nth=1 >> select", label="PAG.scale")
    assert heads(page)[1] == ["Positive.text <b>cat</b>", "Positive.text #dog?"]
    assert page.locator("td img").count() == 11
    page.select_option("form label >> nth=3 >> select", label="1")
    assert page.locator("td img").count() == 5
    page.select_option("form label >> nth=0 >> select", label="nothing")
    assert page.locator("tbody tr").count() == 1


def test_the_rest_of_the_settings_is_shown_on_hover_and_the_picture_on_a_click(page):
    page.reload()
    page.hover("td img >> nth=3")
    said = page.inner_text("#rest").splitlines()
    assert said[:3] == ["PAG.scale: 0", "KSampler.seed: 1", "Positive.text: #dog?"]
    assert said[-1] == "2.5 s on a worker"
    with page.expect_popup() as opened:
        page.click("td img >> nth=3")
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("document.images[0].naturalWidth") == 8
