"""The server of the demo, as far as it goes without a ComfyUI."""

from __future__ import annotations

import io
import re
import socket
import threading
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo import banner, compare  # noqa: E402
from reins.demo.client import Event, Result  # noqa: E402
from reins.demo.graphs import START, UnknownWorkflow, load_graphs, needs_checkpoint, needs_more_files, work  # noqa: E402
from reins.demo.host import Host, HostDied, HostSettings  # noqa: E402
from reins.demo.pictures import cells, contact_sheet, save_pictures  # noqa: E402
from reins.demo.progress import ProgressBar, ProgressLines, progress  # noqa: E402
from reins.demo.run import DemoError, Session, choose_graphs, make_folder, parse, run_all  # noqa: E402
from reins.demo.serve import offer_examples  # noqa: E402


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
    assert not [name for name in more if name == START or name.startswith("demo_")]  # whose model ships
    without = choose_graphs(parse(["--comfy", "here"]))
    assert not any(map(needs_checkpoint, without.values()))
    with_one = choose_graphs(parse(["--comfy", "here", "--checkpoint", "mine.safetensors"]))
    assert with_one.keys() == load_graphs().keys() - more
    for line in (line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")):
        assert all(name in line for name in more)
        assert "image encoder" in line


def test_the_demo_begins_with_the_example_to_start_with():
    assert next(iter(choose_graphs(parse(["--comfy", "here"])))) == START
    assert next(iter(choose_graphs(parse(["--comfy", "here", "--checkpoint", "mine.safetensors"])))) == START
    assert min(load_graphs()) == START


def test_the_demo_runs_quick_workflows_before_long_ones_and_those_on_a_checkpoint_last():
    graphs = list(choose_graphs(parse(["--comfy", "here", "--checkpoint", "mine.safetensors"])).values())[1:]
    costs = [(needs_checkpoint(graph), work(graph)) for graph in graphs]
    assert costs == sorted(costs)
    assert len(set(costs)) > 5
    by_name = choose_graphs(parse(["--comfy", "here", "--only", "demo_prompt", "demo_scene"]))
    assert list(by_name) == ["demo_prompt", "demo_scene"]


def test_the_work_of_a_graph_counts_steps_and_pictures_but_no_links():
    samplers = {
        "1": {"class_type": "KSampler", "inputs": {"steps": 16}},
        "2": {"class_type": "KSampler", "inputs": {"steps": ["5", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"steps": 4}},
    }
    assert work(samplers) == 20
    assert work(samplers | {"4": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 3}}}) == 60


class Clock:
    """A clock that only waiting moves, with what happens in each wait; the last one ends it."""

    def __init__(self, *happenings):
        self.seconds = 0.0
        self._happenings = list(happenings)

    def __call__(self):
        return self.seconds

    def wait(self, seconds):
        self.seconds += seconds
        self._happenings.pop(0)()
        return not self._happenings


def test_without_a_terminal_a_line_every_ten_seconds_says_workflow_node_percent_and_seconds(capsys):
    graph = {"7": {"class_type": "KSampler", "inputs": {}}, "8": {"class_type": "VAEDecode", "inputs": {}}}
    clock = Clock(
        lambda: None,
        lambda: lines(Event("executing", {"node": "7"})),
        lambda: lines(Event("progress", {"node": "7", "value": 3, "max": 16})),
        lambda: None,  # the server says nothing
        lambda: lines(Event("executing", {"node": "8"})),
        lambda: lines(Event("executing", {"node": None})),
    )
    lines = ProgressLines("demo_x", graph, clock, clock.wait)
    lines.report()
    assert capsys.readouterr().out.splitlines() == [
        "  demo_x: waiting for the server 0 %, 10 s",
        "  demo_x: KSampler 0 %, 20 s",
        "  demo_x: KSampler 18 %, 30 s",
        "  demo_x: KSampler 18 %, 40 s",
        "  demo_x: VAEDecode 0 %, 50 s",
    ]


def test_lines_end_with_their_workflow(capsys):
    before = set(threading.enumerate())
    with ProgressLines("demo_x", {}) as lines:
        assert set(threading.enumerate()) > before
        lines(Event("executing", {"node": "7"}))
    assert set(threading.enumerate()) == before
    assert capsys.readouterr().out == ""


class Server:
    """What the demo needs of a client: each graph gives one picture; `shown` is what was printed before each run."""

    def __init__(self, capsys):
        self.shown = []
        self._capsys = capsys

    def run(self, graph, timeout, on_event):
        self.shown.append(self._capsys.readouterr().out)
        for node in graph:
            on_event(Event("executing", {"node": node}))
        return Result("id", {"1": {"images": [{"filename": "x_00001_.png"}]}}, [], [], 1.0)

    def image_bytes(self, file):
        return picture("red")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_first_picture_is_named_as_soon_as_it_is_saved(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    server = Server(capsys)
    assert run_all(Session(server, "", False), load_graphs([START, "demo_prompt", "demo_scene"]), tmp_path) == 0
    named = [re.findall("the first picture: (.+)", shown) for shown in server.shown]
    assert named == [[], [str(tmp_path / f"{START}-x.png")], []]


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressBar), (False, ProgressLines)])
def test_a_bar_is_for_a_terminal_and_lines_are_for_the_rest(terminal, kind, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    with progress("demo_x", {}) as shown:
        assert isinstance(shown, kind)


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
    drawn_by_hand = {"house", "skipped_blocks"}  # how the pack is built, and what SLG does in a network
    by_a_sweep = {"sweep"}
    assert {path.stem for path in images.iterdir()} == {*compare.STRIPS, "scope", *drawn_by_hand, *by_a_sweep}
    for number, colour in ((1, "red"), (2, "blue")):
        Image.new("RGB", (256, 256), colour).save(tmp_path / f"demo_x-y{'' if number == 1 else '_2'}.png")
    strip = compare.Strip((compare.Column("label", "demo_x-y"),), (1, 2))
    drawn = compare.draw(strip, tmp_path)
    colours = [drawn.getpixel((left + 20, compare.HEAD + 20)) for left in (0, compare.SIDE + compare.BETWEEN)]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert min(low for low, _ in drawn.crop((0, 0, 60, compare.HEAD)).getextrema()) < 100  # the label


def test_the_banner_shows_each_pair_as_the_strips_have_it():
    images = Path(compare.__file__).parents[1] / "docs"
    drawn = banner.draw(images / "images")
    assert drawn.size == banner.SIZE
    with Image.open(images / "banner.png") as shipped:
        for i in range(len(banner.PAIRS)):
            left, top = banner.place_in_banner(i)
            box = (left, top, left + 2 * banner.SIDE + banner.GAP, top + banner.SIDE)
            assert drawn.crop(box).tobytes() == shipped.convert("RGB").crop(box).tobytes()


def test_a_workflow_is_named_with_or_without_its_ending_and_a_wrong_name_is_told_the_right_ones():
    with pytest.raises(UnknownWorkflow, match=r"no workflow called demo_pag; there are .*demo_pag_perturbed_attention"):
        load_graphs(["demo_pag"])
    assert list(load_graphs(["_start_here.json"])) == ["_start_here"]


def test_a_folder_that_takes_no_pictures_is_refused_before_a_server_starts(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DemoError, match=r"no picture can be saved in .*file.*name another folder by --out"):
        make_folder(file)
    make_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_an_example_that_its_user_has_changed_stays_changed_and_the_others_are_renewed(tmp_path):
    settings = HostSettings(comfy=tmp_path, base=tmp_path)
    folder = tmp_path / "user" / "default" / "workflows" / "reins"
    offer_examples(settings, "first.safetensors")
    changed, other = folder / "pag_perturbed_attention_sd15.json", folder / "seg_smoothed_energy_sd15.json"
    changed.write_text("the user's", encoding="utf-8")
    offer_examples(settings, "second.safetensors")
    assert changed.read_text(encoding="utf-8") == "the user's"
    assert "second.safetensors" in other.read_text(encoding="utf-8")
    assert "first.safetensors" not in other.read_text(encoding="utf-8")
