"""The server of the demo, as far as it goes without a ComfyUI."""

from __future__ import annotations

import io
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo import compare  # noqa: E402
from reins.demo.graphs import load_graphs, needs_checkpoint, needs_more_files  # noqa: E402
from reins.demo.host import Host, HostDied, HostSettings  # noqa: E402
from reins.demo.pictures import cells, contact_sheet, save_pictures  # noqa: E402
from reins.demo.run import DemoError, choose_graphs, parse  # noqa: E402


def test_a_port_that_somebody_holds_is_refused_before_anything_is_made(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(HostDied, match=f"port {port} is in use"),
            Host(HostSettings(Path("nowhere"), tmp_path, port=port)),
        ):
            pass
    assert not list(tmp_path.iterdir())


def test_a_server_begins_with_no_database(tmp_path):
    (tmp_path / "main.py").write_text("import sys; sys.exit(' '.join(sys.argv))")
    host = Host(HostSettings(tmp_path, tmp_path))
    left = tmp_path / f"server-{host.port}.db"  # of another version, perhaps a newer one
    left.touch()
    with pytest.raises(HostDied, match=f"--database-url sqlite:///{re.escape(str(left))} "), host:
        pass
    assert not left.exists()


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_are_called_what_the_graph_calls_them(tmp_path):
    files = [
        ("pag_plain_00001_.png", picture("red")),
        ("pag_00017_.png", picture("green")),
        ("pag_00018_.png", picture("blue")),
    ]
    saved = save_pictures("perturbed", files, tmp_path)
    assert [found.title for found in saved] == ["pag_plain", "pag", "pag #2"]
    assert [found.path.name for found in saved] == [
        "perturbed-pag_plain.png",
        "perturbed-pag.png",
        "perturbed-pag_2.png",
    ]
    assert [found.path.read_bytes() for found in saved] == [content for _, content in files]
    contact_sheet(saved, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= {colour for _, colour in sheet.getcolors(100000)}


def test_a_batch_stays_in_one_row_of_the_sheet():
    titles = ["one", *(f"many{n}" for n in ("", " #2", " #3", " #4")), "two"]
    assert cells(titles, 4) == [(0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (0, 2)]
    assert cells(["one", "few", "few #2", "two"], 4) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert cells(["one", "many", "many #2", "many #3"], 2) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_workflows_that_need_more_than_a_checkpoint_are_left_out_with_a_reason(capsys):
    more = {name for name, graph in load_graphs().items() if needs_more_files(graph)}
    assert more
    without = choose_graphs(parse(["--comfy", "here"]))
    assert not any(map(needs_checkpoint, without.values()))
    with_one = choose_graphs(parse(["--comfy", "here", "--checkpoint", "mine.safetensors"]))
    assert with_one.keys() == load_graphs().keys() - more
    for line in (line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")):
        assert all(name in line for name in more)
        assert "image encoder" in line


def test_a_workflow_that_needs_more_than_a_checkpoint_is_refused_by_name_on_a_server_of_our_own():
    (name, *_) = (name for name, graph in load_graphs().items() if needs_more_files(graph))
    with pytest.raises(DemoError, match=name):
        choose_graphs(parse(["--comfy", "here", "--only", name]))
    assert list(choose_graphs(parse(["--url", "there", "--only", name]))) == [name]


@pytest.mark.parametrize("name", compare.STRIPS)
def test_a_strip_is_cut_from_pictures_that_its_workflow_saves(name):
    for column in compare.STRIPS[name].columns:
        workflow, saved = column.saved.split("-")
        nodes = load_graphs([workflow])[workflow].values()
        assert f"reins/{saved}" in [node["inputs"].get("filename_prefix") for node in nodes]


def test_every_strip_is_among_the_pictures_of_the_page_and_labels_what_it_cuts(tmp_path):
    images = Path(compare.__file__).parents[1] / "docs" / "images"
    assert {path.stem for path in images.iterdir()} == {*compare.STRIPS, "scope"}
    for number, colour in ((1, "red"), (2, "blue")):
        Image.new("RGB", (256, 256), colour).save(tmp_path / f"demo_x-y{'' if number == 1 else '_2'}.png")
    strip = compare.Strip((compare.Column("label", "demo_x-y"),), (1, 2))
    drawn = compare.draw(strip, tmp_path)
    colours = [drawn.getpixel((left + 20, compare.HEAD + 20)) for left in (0, compare.SIDE + compare.BETWEEN)]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert min(low for low, _ in drawn.crop((0, 0, 60, compare.HEAD)).getextrema()) < 100  # the label
