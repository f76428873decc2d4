"""A sweep over a running server: the pictures are those that a person gets who queues each prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")
pytest.importorskip("psutil", reason="processes are found with psutil (requirements-dev.txt)")

from reins.sweep.command import parse, sweep  # noqa: E402
from reins.sweep.graph import leading_to, read_graph  # noqa: E402
from reins.tests.helpers.sweep_runs import GRAPH, SMALL, table  # noqa: E402
from reins.tests.server.pictures import pixel_hash  # noqa: E402

if TYPE_CHECKING:
    from reins.tests.server.conftest import Server

pytestmark = pytest.mark.server


def run(server: Server, out: Path, *settings: str, urls: tuple[str, ...] = (), graph: tuple[str, ...] = SMALL) -> int:
    sets = [part for text in settings for part in ("--set", text)]
    addresses = [part for url in (server.client.url, *urls) for part in ("--url", url)]
    return sweep(parse([*graph, *sets, *addresses, "--out", str(out)]))


def test_each_row_has_the_picture_of_its_settings_and_its_workflow_inside(server, tmp_path, capsys):
    assert run(server, tmp_path, "PAG.scale=0,2", "24.seed=5:7") == 0
    said = capsys.readouterr().out
    assert "4 prompts: 1 of 2.batch_size x 1 of 24.steps x 2 of PAG.scale x 2 of 24.seed" in said
    assert "4 of 4 prompts" in said
    rows = table(tmp_path)
    assert [(row["PAG.scale"], row["24.seed"], row["seed"]) for row in rows] == [
        ("0", "5", "5"), ("0", "6", "6"), ("2", "5", "5"), ("2", "6", "6"),
    ]  # fmt: skip
    assert len({row["pixels_sha256"] for row in rows}) == 4
    for row in rows:
        graph = leading_to(read_graph(GRAPH), "27")
        graph["2"]["inputs"]["batch_size"], graph["24"]["inputs"]["steps"] = 1, 4
        graph["10"]["inputs"]["scale"], graph["24"]["inputs"]["seed"] = float(row["PAG.scale"]), int(row["24.seed"])
        assert pixel_hash(server.client, server.client.run(graph)) == row["pixels_sha256"]
        with Image.open(tmp_path / row["pictures"]) as picture:
            assert json.loads(picture.info["prompt"]) == graph
        assert read_graph(str(tmp_path / row["pictures"])) == graph  # and so it can be swept again
    assert (tmp_path / "index.html").is_file() and (tmp_path / "grid.png").is_file()


def test_a_node_that_fails_is_a_row_with_its_error_and_the_exit_code_says_so(
    server, tmp_path, capsys, expected_in_tracebacks
):
    expected_in_tracebacks.append("nonsense")
    assert run(server, tmp_path, "PAG.layers=u2,nonsense,m0") == 1
    rows = table(tmp_path)
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert "node 10 (Reins_PerturbedAttentionGuidance): " in rows[1]["error"]
    said = capsys.readouterr().out
    assert "failed: node 10 (Reins_PerturbedAttentionGuidance): " in said
    assert "1 prompt failed twice" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("24.sampler_name=eulr",), "24.sampler_name has no option eulr; there are euler"),
        (("24.steps=0",), "set the same input"),
        (("24.cfg=-1",), "24.cfg takes numbers from 0 to 100, found -1"),
        (("24.model=3",), "model is linked to node 10"),
        (("SEG.scale=1",), "there is no node SEG; there are 1 (Demo Model, Reins_DemoModel), 2 ("),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_runs(server, settings, said, tmp_path, capsys):
    before = len(server.client.get("/history"))
    assert run(server, tmp_path, *settings) == 2
    assert said in capsys.readouterr().out
    assert len(server.client.get("/history")) == before
    assert not list(tmp_path.iterdir())


def test_a_missing_model_is_named_with_the_server_that_lacks_it(server, tmp_path, capsys):
    assert run(server, tmp_path, "20.seed=0:2", graph=("controlnext_sd15",)) == 2
    lack = "no controlnext-sd15-pose.safetensors for Reins_ControlNeXtLoader.control_name; there are "
    assert f"{server.client.url} has {lack}" in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_named(server, tmp_path, capsys):
    assert run(server, tmp_path, "PAG.scale=0", urls=("http://127.0.0.1:9",)) == 2
    assert "no ComfyUI answers at http://127.0.0.1:9: " in capsys.readouterr().out
