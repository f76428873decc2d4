"""What a sweep leaves in its folder: pictures, a table, a page, a grid; and what it does with it when run again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tracemalloc

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.sweep.choice import choose  # noqa: E402
from reins.sweep.drive import Drive, duration  # noqa: E402
from reins.sweep.errors import SweepError  # noqa: E402
from reins.sweep.outcome import File, Outcome, pixel_hash  # noqa: E402
from reins.sweep.page import write_page  # noqa: E402
from reins.sweep.plan import make_plan, read_axes  # noqa: E402
from reins.sweep.records import Records  # noqa: E402
from reins.sweep.sheet import write_sheet  # noqa: E402
from reins.sweep.table import write_table  # noqa: E402
from reins.tests.helpers.sweeps import INFO, StandIn, drawn, small_graph  # noqa: E402

COLOURS = {0.0: "red", 1.5: "lime", 3.0: "blue"}


def make(*texts: str):
    graph = small_graph()
    return make_plan(graph, read_axes(graph, texts), INFO)


@pytest.fixture
def plan():
    return make("PAG.scale=0,1.5,3", "PAG.layers=m0,u2", "KSampler.seed=0:2")


def picture_of(row) -> Outcome:
    content = drawn(COLOURS.get(row.values[0], "white"))
    return Outcome(row.key, "a worker", 1.5, (File("drawn", ".png", content),), pixel_hash([content]))


def drive(plan, folder, answer=picture_of) -> tuple[Drive, Records, StandIn]:
    records, engine, shown = Records(folder, plan), StandIn(answer), []
    run = Drive(plan, records, lambda: write_table(plan, records))
    run.run(engine, shown.append)
    write_table(plan, records)
    return run, records, engine


def table(folder) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_is_in_the_table_once_in_the_order_of_the_plan(plan, tmp_path):
    drive(plan, tmp_path)
    rows = table(tmp_path)
    assert [(row["PAG.scale"], row["PAG.layers"], row["KSampler.seed"]) for row in rows] == [
        (scale, layers, seed) for scale in ("0", "1.5", "3") for layers in ("m0", "u2") for seed in ("0", "1")
    ]
    assert rows[0]["seed"] == "0"
    assert (rows[0]["seconds"], rows[0]["worker"], rows[0]["error"]) == ("1.5", "a worker", "")
    red = hashlib.sha256(Image.new("RGB", (8, 8), "red").tobytes()).hexdigest()
    assert rows[0]["pixels_sha256"] == red != rows[-1]["pixels_sha256"]


def test_a_picture_is_called_by_its_settings_and_its_bytes_are_those_of_the_server(plan, tmp_path):
    drive(plan, tmp_path)
    (name,) = (row["pictures"] for row in table(tmp_path)[2:3])
    assert re.fullmatch(r"pictures/PAG\.scale=0_PAG\.layers=u2_KSampler\.seed=0_[0-9a-f]{8}-drawn\.png", name)
    assert (tmp_path / name).read_bytes() == drawn("red")


def test_long_and_foreign_settings_make_names_that_every_system_takes(tmp_path):
    long = make(f'Positive.text="{"ü" * 300}: a/b?","{"ü" * 300}: a/c?",名前')
    drive(long, tmp_path)
    names = os.listdir(tmp_path / "pictures")
    assert len(names) == 3
    assert all(len(name.encode()) < 200 and not set(name) & set('<>:"/\\|?*') for name in names)


def test_the_pixels_of_all_pictures_count_and_nothing_else_of_the_files():
    marked = io.BytesIO()
    Image.open(io.BytesIO(drawn("red"))).save(marked, "PNG", compress_level=0)
    assert marked.getvalue() != drawn("red")
    assert pixel_hash([marked.getvalue()]) == pixel_hash([drawn("red")])
    assert pixel_hash([drawn("red"), drawn("blue")]) != pixel_hash([drawn("red")])
    assert pixel_hash([b"a film"]) == hashlib.sha256(b"a film").hexdigest()


def test_a_run_that_was_stopped_goes_on_where_it_was(plan, tmp_path):
    drive(plan, tmp_path, lambda row: picture_of(row) if row.values[2] == 0 else None)
    assert len(table(tmp_path)) == 6
    _, _, engine = drive(plan, tmp_path)
    assert engine.asked == [row.key for row in plan.rows if row.values[2] == 1]
    assert len(table(tmp_path)) == 12
    assert drive(plan, tmp_path)[2].asked == []


def test_a_sweep_with_more_values_takes_over_what_is_there(plan, tmp_path):
    drive(plan, tmp_path)
    more = make("10.scale=0:4:1.5", "PAG.layers=m0,u2,u1", "KSampler.seed=0:2")  # 0, 1.5, 3 under another name
    assert len(drive(more, tmp_path)[2].asked) == 6


def test_half_a_file_and_a_lost_picture_do_not_count(plan, tmp_path):
    drive(plan, tmp_path)
    first, second, third = table(tmp_path)[:3]
    (tmp_path / first["pictures"]).unlink()
    (tmp_path / "rows" / f"{plan.rows[1].key}.json").write_text('{"pictures": ["', encoding="utf-8")
    (tmp_path / "pictures" / "left.png.partial").write_bytes(b"half")
    assert drive(plan, tmp_path)[2].asked == [row.key for row in plan.rows[:2]]
    assert not list(tmp_path.rglob("*.partial"))
    assert {row["pictures"] for row in table(tmp_path)[:3]} == {row["pictures"] for row in (first, second, third)}


def test_a_prompt_that_fails_twice_is_a_row_with_its_error_and_the_rest_goes_on(plan, tmp_path):
    bad = plan.rows[3].key

    def answer(row):
        return Outcome(row.key, "a worker", error="node 3: no, never") if row.key == bad else picture_of(row)

    run, _, engine = drive(plan, tmp_path, answer)
    assert engine.asked.count(bad) == 2
    assert engine.asked[-1] == bad
    rows = table(tmp_path)
    assert [row["error"] for row in rows] == [""] * 3 + ["node 3: no, never"] + [""] * 8
    assert [row.key for row in run.failed()] == [bad]
    assert run.unfinished() == []
    assert drive(plan, tmp_path)[2].asked == [bad]  # another try if the sweep is run again
    assert [row["error"] for row in table(tmp_path)] == [""] * 12


def test_a_prompt_that_fails_once_has_its_picture_in_the_end(plan, tmp_path):
    failed = set()

    def answer(row):
        first = row.key not in failed
        failed.add(row.key)
        return Outcome(row.key, "a worker", error="lost") if first else picture_of(row)

    run, _, engine = drive(plan, tmp_path, answer)
    assert len(engine.asked) == 24
    assert run.failed() == []
    assert all(row["pictures"] for row in table(tmp_path))


def test_rows_that_no_worker_takes_are_left_for_the_next_run(plan, tmp_path):
    run, _, engine = drive(plan, tmp_path, lambda row: None)
    assert len(run.unfinished()) == 12
    assert table(tmp_path) == []
    assert "0 of 12 prompts" in run.progress(engine)
    assert "1 of 1 workers" in run.progress(engine)


def test_an_outcome_that_comes_twice_counts_once(plan, tmp_path):
    first = plan.rows[0]
    run, _, _ = drive(plan, tmp_path, lambda row: picture_of(first) if row is plan.rows[1] else picture_of(row))
    assert len(table(tmp_path)) == 11
    assert run.unfinished() == [plan.rows[1]]


def test_a_folder_that_cannot_be_written_to_is_refused(plan, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SweepError, match="no result can be saved in"):
        Records(tmp_path / "file", plan)


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "60 s"), (150, "2 min"), (3 * 3600 + 130, "3 h 2 min")])
def test_the_time_left_is_said_in_the_unit_that_fits(seconds, said):
    assert duration(seconds) == said


# --- the grid --------------------------------------------------------------------------------------------------------


def test_rows_and_columns_are_the_first_options_that_vary(plan, tmp_path):
    assert choose(plan) == (0, 1)
    assert choose(plan, columns="KSampler.seed") == (0, 2)
    assert choose(plan, "PAG.layers") == (1, 0)
    assert choose(make("PAG.scale=1", "KSampler.seed=0:3")) == (None, 1)
    assert choose(make()) == (None, None)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("Positive.text,KSampler.seed\na,1\nb,2\n", encoding="utf-8")
    assert choose(make(f"@{prompts}", "PAG.scale=0,1")) == (0, 2)  # what belongs together makes no grid
    with pytest.raises(SweepError, match=r"PAG\.size is not among the settings of this sweep; there are PAG\.scale"):
        choose(plan, "PAG.size")


def test_the_sheet_has_each_picture_at_its_row_and_column(plan, tmp_path):
    _, records, _ = drive(plan, tmp_path)
    write_sheet(plan, records, choose(plan))
    with Image.open(tmp_path / "grid.png") as sheet:
        squares = {colour: [] for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))}
        pixels = sheet.load()
        for y in range(0, sheet.height, 8):
            for x in range(0, sheet.width, 8):
                if pixels[x, y] in squares:
                    squares[pixels[x, y]].append((x, y))
    heights = [sorted({y for _, y in places}) for places in squares.values()]
    assert heights[0][-1] < heights[1][0] < heights[1][-1] < heights[2][0]  # scale 0, 1.5 and 3 from the top
    for places in squares.values():
        wide = {x for x, _ in places}
        assert max(wide) - min(wide) > 1.5 * 248  # two columns side by side


def test_a_sheet_of_many_pictures_stays_small_enough_to_open(tmp_path):
    many = make("KSampler.seed=0:400")
    _, records, _ = drive(many, tmp_path)
    write_sheet(many, records, choose(many))
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width <= 400 * 22 + 12
        assert sheet.height < 100


def test_a_sheet_without_pictures_is_not_drawn(plan, tmp_path):
    _, records, _ = drive(plan, tmp_path, lambda row: Outcome(row.key, "a worker", error="no"))
    write_sheet(plan, records, choose(plan))
    assert not (tmp_path / "grid.png").exists()


def test_the_page_has_all_data_inside_and_no_text_of_a_prompt_ends_its_script(tmp_path):
    prompts = make('Positive.text="</script><b>a cat</b>",b', "PAG.scale=0,1.5")
    _, records, _ = drive(prompts, tmp_path)
    write_page(prompts, records, choose(prompts), "a sweep")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 1
    assert not re.findall(r"https?:|<link|src=\"", page)  # nothing from elsewhere
    (text,) = re.findall(r"^const data = (.+);$", page, re.MULTILINE)
    data = json.loads(text)
    assert data["values"] == [["</script><b>a cat</b>", "b"], ["0", "1.5"]]
    assert [row["values"] for row in data["rows"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all((tmp_path / name).is_file() for row in data["rows"] for name in row["pictures"])


def test_a_full_disk_ends_the_sweep_with_its_reason(plan, tmp_path, monkeypatch):
    from reins.sweep import records

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_whole", full)
    with pytest.raises(SweepError, match=r"no result can be saved in .+: No space left on device"):
        drive(plan, tmp_path)


def test_pictures_are_not_kept_in_memory(tmp_path):
    many, sizes = make("KSampler.seed=0:500"), []
    content = bytes(100_000)

    def answer(row):
        sizes.append(tracemalloc.get_traced_memory()[0])
        return Outcome(row.key, "a worker", 1.0, (File("drawn", ".bin", bytes(content)),), "0" * 64)

    tracemalloc.start()
    try:
        drive(many, tmp_path, answer)
    finally:
        tracemalloc.stop()
    assert max(sizes[100:]) - sizes[100] < 2_000_000  # 40 MB if they were


@pytest.mark.parametrize("place", [0, 1])
def test_a_kill_between_two_files_leaves_no_half_and_the_row_is_run_again(place, plan, tmp_path, monkeypatch):
    from reins.sweep import records

    moved, move = [], os.replace

    def killed(source, target):
        if len(moved) == place:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(records.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        drive(plan, tmp_path)
    files = [path for path in tmp_path.rglob("*.*") if path.suffix != ".partial"]
    assert files == moved  # the picture comes first, what says that the row has ended comes last
    assert all(path.suffix == ".png" for path in files)
    monkeypatch.undo()
    assert drive(plan, tmp_path)[2].asked == [row.key for row in plan.rows]
