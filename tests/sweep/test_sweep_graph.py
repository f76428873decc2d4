"""A sweep's workflow: an export, a picture, the name of an example; anything else is refused with the way out."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from PIL.PngImagePlugin import PngInfo  # noqa: E402
from reins.demo.graphs import API_FOLDER  # noqa: E402
from reins.sweep.errors import SweepError  # noqa: E402
from reins.sweep.graph import digest, read_graph  # noqa: E402
from reins.tests.helpers.sweeps import small_graph  # noqa: E402


def picture(path, **notes: str) -> str:
    information = PngInfo()
    for name, text in notes.items():
        information.add_text(name, text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=information)
    return str(path)


def test_an_export_and_a_picture_give_the_same_workflow(tmp_path):
    graph = small_graph()
    (tmp_path / "graph.json").write_text(json.dumps(graph), encoding="utf-8-sig")
    noted = {key: {**node, "is_changed": [float("nan")]} for key, node in graph.items()}
    drawn = picture(tmp_path / "drawn.png", prompt=json.dumps(noted), workflow='{"nodes": []}')
    assert read_graph(str(tmp_path / "graph.json")) == read_graph(drawn) == graph


@pytest.mark.parametrize("name", ["demo_pag_perturbed_attention", "demo_pag_perturbed_attention.json"])
def test_the_name_of_an_example_is_enough(name):
    said = json.loads((API_FOLDER / "demo_pag_perturbed_attention.json").read_text(encoding="utf-8"))
    assert read_graph(name) == said


def test_the_format_of_the_editor_is_refused_with_the_way_to_export(tmp_path):
    editor = json.dumps({"nodes": [{"id": 1}], "links": []})
    (tmp_path / "editor.json").write_text(editor, encoding="utf-8")
    with pytest.raises(SweepError, match=r"editor\.json is in the editor's format.+Workflow > Export \(API\)$"):
        read_graph(str(tmp_path / "editor.json"))
    with pytest.raises(SweepError, match=r"workflow in the editor's format alone: .+Export \(API\)$"):
        read_graph(picture(tmp_path / "editor.png", workflow=editor))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "is no workflow in the API form"),
        (b"{}", "is no workflow in the API form"),
        (b'{"1": {"inputs": {}}}', "is no workflow in the API form"),
        (b"not JSON", "is neither JSON nor a PNG that ComfyUI wrote"),
        (b"\xff\xd8\xff", "is neither JSON nor a PNG that ComfyUI wrote"),
    ],
)
def test_a_file_of_another_kind_is_refused(content, said, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(SweepError, match=said):
        read_graph(str(tmp_path / "other"))


def test_a_picture_without_a_workflow_is_refused(tmp_path):
    with pytest.raises(SweepError, match=r"has no workflow inside"):
        read_graph(picture(tmp_path / "photo.png"))


def test_a_name_that_is_neither_file_nor_example_is_refused_with_those_that_resemble_it():
    with pytest.raises(SweepError, match=r"no file demo_pag_perturbed and no example .+demo_pag_perturbed_attention"):
        read_graph("demo_pag_perturbed")


def test_the_hash_of_a_workflow_is_that_of_what_it_computes():
    graph, renamed, other = small_graph(), small_graph(), small_graph()
    renamed["3"]["_meta"]["title"] = "Another title"
    other["3"]["inputs"]["seed"] = 8
    moved = {key: graph[key] for key in reversed(graph)}
    assert digest(graph) == digest(renamed) == digest(moved) != digest(other)
