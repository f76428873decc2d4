"""What counts as a lost server, what as a prompt that failed, and which files of a prompt are kept."""

from __future__ import annotations

import urllib.error
from email.message import Message

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo.client import ExecutionFailed, PromptRejected, Result  # noqa: E402
from reins.sweep.prompt import WorkerLost, run_prompt  # noqa: E402
from reins.tests.helpers.sweeps import drawn  # noqa: E402


class Server:
    """Answers with files, or raises."""

    def __init__(self, *files: tuple[str, str], error: Exception | None = None) -> None:
        self._files, self._error = files, error

    def run(self, graph, timeout):
        if self._error:
            raise self._error
        listed = [{"filename": name, "subfolder": "", "type": kind} for name, kind in self._files]
        return Result("id", {"9": {"images": listed}}, [], [], 2.0)

    def image_bytes(self, file):
        return drawn("red") if file["filename"].endswith("png") else b"film"


NODE = {"node_id": "3", "node_type": "KSampler", "exception_message": "no"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ExecutionFailed("execution_error", NODE), "node 3 (KSampler): no"),
        (ExecutionFailed("execution_interrupted", NODE), "node 3 (KSampler): interrupted"),
        (PromptRejected({"error": {"message": "no outputs"}}), "no outputs"),
        (urllib.error.HTTPError("/view", 404, "gone", Message(), None), "an answer that makes no sense"),
        (KeyError("outputs"), "that makes no sense: KeyError('outputs')"),
    ],
)
def test_a_prompt_that_fails_has_its_error(error, said):
    outcome = run_prompt(Server(error=error), "key", {}, "a worker")
    assert said in outcome.error
    assert (outcome.key, outcome.worker, outcome.files) == ("key", "a worker", ())


@pytest.mark.parametrize(
    "error", [ConnectionError("closed"), TimeoutError("late"), aiohttp.ServerDisconnectedError(), OSError("refused")]
)
def test_a_server_that_does_not_answer_is_lost(error):
    with pytest.raises(WorkerLost, match="a worker was lost: "):
        run_prompt(Server(error=error), "key", {}, "a worker")


def test_saved_files_are_kept_and_those_that_are_only_shown_if_nothing_is_saved():
    saved = Server(("a_00001_.png", "output"), ("a_00002_.png", "output"), ("shown.png", "temp"), ("b.mp4", "output"))
    outcome = run_prompt(saved, "key", {}, "a worker")
    assert [(file.title, file.suffix) for file in outcome.files] == [("a", ".png"), ("a_2", ".png"), ("b", ".mp4")]
    assert outcome.seconds == 2.0
    shown = run_prompt(Server(("shown_00001_.png", "temp")), "key", {}, "a worker")
    assert [file.title for file in shown.files] == ["shown"]
