"""The thumbnails of the examples: what they show, and that they look like nothing else."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")
ImageChops = pytest.importorskip("PIL.ImageChops")
ImageStat = pytest.importorskip("PIL.ImageStat")

from reins.demo.graphs import START, load_graphs  # noqa: E402
from reins.demo.thumbnail_table import BORROWED, NEEDED, SHOWN, Part, Thumbnail  # noqa: E402
from reins.demo.thumbnails import draw, draw_example, needed, saved_file  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "example_workflows"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
TABLE = SHOWN | BORROWED
AMBER = (255, 211, 77)  # of the strip


def for_the_demo_model(name: str) -> bool:
    return name == START or name.startswith("demo_")


def opened(name: str):
    with Image.open(EXAMPLES / f"{name}.jpg") as thumbnail:
        assert thumbnail.format == "JPEG"
        return thumbnail.convert("RGB")


def strip_of(thumbnail) -> tuple[float, ...]:
    """The colour of the lowest rows, where the strip has no letters."""
    return tuple(ImageStat.Stat(thumbnail.crop((0, 506, 512, 512))).mean)


def share_of_colour(thumbnail) -> float:
    """The share of the pixels above the strip that are neither grey nor nearly black."""
    _, saturation, value = thumbnail.crop((0, 0, 512, 466)).convert("HSV").split()
    coloured = ImageChops.multiply(*(channel.point(lambda v: 255 * (v > 76)) for channel in (saturation, value)))
    return ImageStat.Stat(coloured).mean[0] / 255


def difference(a, b) -> float:
    """The mean difference of two thumbnails above their strips, of 255."""
    small = [image.resize((64, 55), Image.Resampling.BOX, (0, 0, 512, 440)) for image in (a, b)]
    return sum(ImageStat.Stat(ImageChops.difference(*small)).mean) / 3


def test_the_table_has_every_example_once():
    assert sorted([*SHOWN, *BORROWED]) == NAMES
    assert all(map(for_the_demo_model, SHOWN))
    assert not any(map(for_the_demo_model, BORROWED))


@pytest.mark.parametrize("name", TABLE)
def test_a_thumbnail_shows_pictures_that_one_workflow_of_the_demo_model_saves(name):
    parts = (*TABLE[name].parts, *TABLE[name].given)
    workflows = {part.saved.split("-")[0] for part in parts}
    assert len(workflows) == 1
    assert not for_the_demo_model(name) or workflows == {name}
    (graph,) = load_graphs(list(workflows)).values()
    prefixes = {node["inputs"].get("filename_prefix") for node in graph.values()}
    for part in parts:
        assert f"reins/{part.saved.split('-')[1]}" in prefixes
    assert len(set(parts)) == len(parts) > 1
    assert all(part.label for part in TABLE[name].parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_has_its_size_and_leaves_the_corner_free_in_which_the_editor_puts_its_badge(name):
    thumbnail = opened(name)
    assert thumbnail.size == (512, 512)
    assert (EXAMPLES / f"{name}.jpg").stat().st_size < 90_000
    assert min(low for low, _ in thumbnail.crop((0, 0, 240, 72)).getextrema()) > 220


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_is_bright_and_has_colour(name):
    thumbnail = opened(name)
    assert ImageStat.Stat(thumbnail.convert("L")).mean[0] > 80
    assert share_of_colour(thumbnail) > 0.025


def test_the_test_of_brightness_and_colour_sees_a_screen_of_nodes():
    nodes = Image.new("RGB", (512, 512), "#181818")
    nodes.paste("#353535", (100, 60, 300, 200))
    assert ImageStat.Stat(nodes.convert("L")).mean[0] < 80
    assert share_of_colour(nodes) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_strip_says_so_if_an_example_needs_files_and_shows_the_demo_model(name):
    has_strip = max(abs(a - b) for a, b in zip(strip_of(opened(name)), AMBER, strict=True)) < 12
    assert has_strip != for_the_demo_model(name)


@pytest.mark.parametrize("name", BORROWED)
def test_the_strip_names_the_model_of_the_example(name):
    words = {"SD1.5": "1.5", "SD2.1 unCLIP": "2.1", "SD3.5": "3.5", "SDXL Turbo": "Turbo"}
    nodes = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    assert words.get(needed(name), needed(name)).lower() in note.lower()


def test_no_two_thumbnails_are_equal_and_those_look_alike_that_show_the_same():
    assert len({hashlib.sha256((EXAMPLES / f"{name}.jpg").read_bytes()).digest() for name in NAMES}) == len(NAMES)
    pictures = {name: opened(name) for name in NAMES}
    alike = [pair for pair in combinations(NAMES, 2) if difference(*map(pictures.get, pair)) < 2]
    assert [pair for pair in alike if TABLE[pair[0]] != TABLE[pair[1]]] == []


@pytest.fixture
def demo_run(tmp_path):
    """A folder with a red picture, a blue one, the second of the red batch in yellow, and a row of red, green, blue."""
    for name, colour in (("demo_x-before", "red"), ("demo_x-after", "blue"), ("demo_x-before_2", "yellow")):
        Image.new("RGB", (256, 256), colour).save(tmp_path / f"{name}.png")
    row = Image.new("RGB", (800, 286), "white")  # with labels below
    for place, colour in enumerate(("red", "lime", "blue")):
        row.paste(colour, (272 * place, 0, 272 * place + 256, 256))
    row.paste("black", (0, 256, 800, 286))
    row.save(tmp_path / "demo_x-row.png")
    return tmp_path


def test_a_thumbnail_puts_before_at_the_left_and_after_at_the_right_with_a_label_below_each(demo_run):
    before, after = Part("without", "demo_x-before"), Part("PAG", "demo_x-after")
    drawn = draw(Thumbnail((before, after), "said"), demo_run)
    assert drawn.size == (512, 512)
    assert [drawn.getpixel((x, y)) for x in (20, 490) for y in (100, 440)] == 2 * [(255, 0, 0)] + 2 * [(0, 0, 255)]
    for left, right in ((0, 256), (256, 512)):
        assert min(low for low, _ in drawn.crop((left, 474, right, 512)).getextrema()) < 100
    assert min(low for low, _ in drawn.crop((250, 0, 512, 72)).getextrema()) < 100  # what is said
    assert min(low for low, _ in drawn.crop((0, 0, 240, 72)).getextrema()) > 220


def test_a_picture_is_found_by_its_number_in_the_batch_and_its_place_in_the_row(demo_run):
    parts = (Part("", "demo_x-before", 2), Part("", "demo_x-row", place=1))
    drawn = draw(Thumbnail(parts, "", (Part("", "demo_x-row", place=2),), tallest=1.0), demo_run)
    assert drawn.getpixel((20, 300)) == (255, 255, 0)
    assert drawn.getpixel((490, 300)) == (0, 255, 0)
    assert drawn.getpixel((500, 20)) == (0, 0, 255)


def test_what_is_cut_out_lies_around_its_centre_and_stays_in_the_picture(demo_run):
    picture = Image.new("RGB", (256, 256), "white")
    picture.paste("red", (192, 0, 256, 64))
    picture.save(demo_run / "demo_x-corner.png")
    part = Part("", "demo_x-corner", at=(1.0, 0.0), rows=0.25)
    drawn = draw(Thumbnail((part, part._replace(rows=0.5)), "", tallest=1.0), demo_run)
    assert drawn.crop((10, 190, 240, 380)).getcolors() == [(230 * 190, (255, 0, 0))]
    assert drawn.getpixel((400, 200)) == (255, 0, 0)
    assert drawn.getpixel((270, 200)) == drawn.getpixel((490, 380)) == (255, 255, 255)


def test_a_strip_is_drawn_for_files_that_are_needed_and_nothing_lies_below_it(demo_run):
    thumbnail = Thumbnail((Part("without", "demo_x-before"), Part("PAG", "demo_x-after")), "said")
    with_strip, without = draw(thumbnail, demo_run, "SD1.5"), draw(thumbnail, demo_run)
    assert with_strip.getpixel((2, 509)) == AMBER
    assert without.getpixel((2, 509)) != AMBER
    assert min(low for low, _ in with_strip.crop((0, 468, 512, 512)).getextrema()) < 100  # the letters
    assert min(low for low, _ in with_strip.crop((0, 432, 256, 466)).getextrema()) < 100  # the label, above the strip
    assert with_strip.getpixel((10, 440)) == without.getpixel((2, 2))  # beside the label there is paper


def test_a_picture_that_the_demo_did_not_save_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"demo_prompt-demo_red_circle_top_left\.png"):
        draw_example("demo_prompt", tmp_path)
    assert saved_file(Part("", "a-b", 3), tmp_path) == tmp_path / "a-b_3.png"


def test_the_longer_of_two_endings_is_meant():
    assert [needed(name) for name in ("x_sdxl", "x_sdxl_turbo", "unicon_sd15_joint", "demo_prompt", START)] == [
        "SDXL", "SDXL Turbo", "SD1.5", None, None,
    ]  # fmt: skip
    assert len(set(NEEDED.values())) == len(NEEDED)
