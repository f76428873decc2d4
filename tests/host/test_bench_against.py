"""The tables beside an older build: what they count is known, and a build that lacks something has no row."""

from __future__ import annotations

import subprocess
import sys
import types

import folder_paths
import pytest
import torch
from reins.bench import against, against_compile, against_loading, least, run
from reins.bench.builds import Build, MissingInput, commit_of, older_build, shelf, this_build
from reins.bench.by_id import Drawn, nag, pag, pladis
from reins.bench.counting import Work, interleaved, operations_per_step, peak_of, ratio
from reins.bench.loading import STATUS
from reins.engine.unet import find_sites
from reins.tests.helpers import methods
from reins.tests.helpers.tiny_models import sample, sd15

ROOT = run.ROOT


@pytest.fixture(scope="module")
def again():
    """This checkout once more, as if it were an older build."""
    return older_build(ROOT, "again")


def test_operations_are_those_that_compute_or_copy():
    x = torch.ones(2, 3)
    with Work() as operations:
        y = (x.t() @ x).view(9)[:4]  # one product and three views
        y.clone().add_(1)
        torch.empty(4)
    assert operations.count == 3


def test_what_is_done_once_per_run_is_not_in_a_step():
    x = torch.ones(2)

    def run_steps(steps: int) -> None:
        for _ in range(7 + 2 * steps):
            x.clone()

    assert operations_per_step(run_steps) == 2


def test_the_peak_is_what_is_held_at_once():
    def act(steps: int) -> None:
        first = torch.empty(1 << 20)
        del first
        second = torch.empty(1 << 21)
        third = torch.empty(1 << 20)
        del second, third

    assert peak_of(act) == 3 * 4 << 20


def test_the_least_of_an_ip_adapter_is_one_attention_and_one_sum_at_each_place():
    model = sd15()
    added = [
        operations_per_step(lambda steps, count=count: sample(least.with_image_attentions(model, count), steps=steps))
        - operations_per_step(lambda steps: sample(model, steps=steps))
        for count in (1, 2)
    ]
    assert added == [2 * len(find_sites(model, "attn2")), 4 * len(find_sites(model, "attn2"))]


def test_rounds_go_through_all_ways_in_turn():
    order: list[str] = []
    ticks = iter(range(100))
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, lambda: float(next(ticks))
    )
    assert order == ["a", "b", "a", "b"] and seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 1.0]) == 3.0


def test_two_builds_have_classes_of_their_own_and_the_same_pictures(again):
    ours, model = this_build(), sd15()
    assert ours.nodes.keys() == again.nodes.keys()
    assert not set(ours.nodes.values()) & set(again.nodes.values())
    expected = sample(methods.pag(model))
    for build in (ours, again):
        assert torch.equal(sample(pag(build, model)), expected)


def test_a_node_or_an_input_that_a_build_has_not_is_named():
    schema = types.SimpleNamespace(inputs=[types.SimpleNamespace(id="model", default=None)])
    old = Build("old", {"Reins_Old": types.SimpleNamespace(define_schema=lambda: schema)})
    with pytest.raises(MissingInput, match="old has no node New"):
        old.run("New")
    with pytest.raises(MissingInput, match="Old of old has no input refresh"):
        old.run("Old", model=None, refresh=2)
    assert not list(against.by_builds({"PAG": pag}, [old], None))


def test_a_folder_without_a_pack_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--base should name a checkout of this pack, but there is no"):
        older_build(tmp_path, "nothing")


def test_the_commit_of_a_checkout_is_read_from_its_files(tmp_path):
    (tmp_path / ".git" / "refs").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/main\n")
    (tmp_path / ".git" / "refs" / "main").write_text("0123456789abcdef\n")
    work_tree = tmp_path / "work tree"
    work_tree.mkdir()
    (work_tree / ".git").write_text(f"gitdir: {tmp_path / 'elsewhere'}\n")
    assert commit_of(tmp_path) == "0123456" and commit_of(work_tree) == "work tree"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "HEAD").write_text("fedcba9876543210\n")
    assert commit_of(work_tree) == "fedcba9"


def test_files_on_the_shelf_are_found_by_all_builds_and_gone_afterwards(again):
    model, ours = sd15(), this_build()
    with shelf() as files:
        drawn = Drawn(files, model, (16, 16))
        for method in (drawn.ip_adapter, drawn.beside, drawn.controlnext):
            assert torch.equal(sample(method(ours, model)), sample(method(again, model)))
    assert "adapter.safetensors" not in folder_paths.get_filename_list("ipadapter")


def test_a_build_beside_itself_has_the_same_counts(again, monkeypatch):
    monkeypatch.setattr(against, "STEPS", 1)
    layout = against.Layout("tiny", {}, (16, 16), 1)
    builds, model = [this_build(), again], sd15()
    cases = [against.Case("plain", "", model), *against.by_builds({"NAG": nag, "PLADIS": pladis}, builds, model)]
    plain, *rows = against.measure(layout, cases, builds)
    assert plain.beyond == 0 and plain.to_plain == 1
    for ours, theirs in (rows[:2], rows[2:]):
        assert ours.operations == theirs.operations > plain.operations and ours.peak == theirs.peak
        assert ours.to_older and theirs.to_older is None
    lines = against.table("text", layout, builds, [plain, *rows])
    assert lines[0] == "## Against an older build: text on tiny, latent 16x16, cfg 7"
    assert "The older build is the commit again." in lines[2]


def test_memory_that_is_kept_and_at_the_peak_is_told():
    if not STATUS.is_file():
        pytest.skip("only Linux tells how much memory belongs to a process")

    def act() -> torch.Tensor:
        torch.ones(64 << 20).sum()
        return torch.ones(16 << 20)

    cost = against_loading.cost_of(against_loading.Way("a way", "ours", act))
    assert 60 <= cost.kept <= 70 and 250 <= cost.peak <= 330 and cost.seconds > 0


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="this torch cannot turn itself off")
def test_a_compiled_picture_is_right_or_wrong_and_its_graphs_are_counted():
    graphs, model = against_compile.Graphs(), sd15(transformer_depth=[0, 0, 0], transformer_depth_output=[0] * 6)
    right = against_compile.sample(model)
    compiled = against_compile.compiled(model, graphs)
    assert against_compile._verdict(lambda: against_compile.sample(compiled), right) == "right"
    assert graphs.count
    assert against_compile._verdict(lambda: 1.5 * right, right) == "wrong by 0.5"
    assert against_compile._verdict(lambda: torch.ones(2) @ torch.ones(3), right) == "RuntimeError"
    torch._dynamo.reset()


def test_tables_beside_an_older_build_need_one(capsys):
    assert list(run.options_of(["--base", "."]).sections) == list(run.AGAINST)
    assert list(run.options_of([]).sections) == list(run.SECTIONS)
    for arguments, said in (
        (["--only", "against-text"], "the table against-text needs --base FOLDER"),
        (["--only", "nodes", "--base", "."], "the table nodes is not measured with --base"),
    ):
        with pytest.raises(SystemExit):
            run.options_of(arguments)
        assert said in capsys.readouterr().err


def test_tables_beside_an_older_build_stay_where_all_others_are_measured_anew():
    page = "# Costs\n\nOld words.\n\n## tiny\n\n| old |\n\n## Against an older build: text\n\n| kept |\n"
    begun = run.anew(page, ["# Costs", "", "New words.", ""])
    assert run.merged(begun, [["## tiny", "", "| new |", ""]]) == (
        "# Costs\n\nNew words.\n\n## Against an older build: text\n\n| kept |\n\n## tiny\n\n| new |\n"
    )


def test_the_list_of_tables_is_told_without_a_host():
    told = subprocess.run(
        [sys.executable, run.__file__, "--help"], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert all(name in told for name in (*run.SECTIONS, *run.AGAINST))
