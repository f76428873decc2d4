"""Runs one prompt on a server."""

from __future__ import annotations

import urllib.error
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import aiohttp

from ..demo.client import ExecutionFailed, PromptRejected
from ..demo.pictures import titles_of
from .outcome import File, Outcome, pixel_hash

if TYPE_CHECKING:
    from ..demo.client import Client, Graph, Result

LONGEST = 900  # characters of an error
WEEK = 7 * 24 * 3600  # seconds; a film on a CPU takes its time


class WorkerLost(Exception):
    """The server ended, or does not answer, while it ran a prompt."""


def run_prompt(client: Client, key: str, graph: Graph, worker: str) -> Outcome:
    """What the server makes of a graph, with its files or with the error of a node.

    Raises WorkerLost if the server does not answer.
    """
    try:
        result = client.run(graph, WEEK)
        files = fetch_files(client, result)
    except (PromptRejected, ExecutionFailed) as error:
        return Outcome(key, worker, error=brief(str(error)))
    except (urllib.error.HTTPError, ValueError, KeyError) as error:
        return Outcome(key, worker, error=brief(f"the server gave an answer that makes no sense: {error!r}"))
    except (aiohttp.ClientError, OSError) as error:
        raise WorkerLost(f"{worker} was lost: {brief(str(error))}") from error
    pixels = pixel_hash([file.content for file in files])
    return Outcome(key, worker, result.seconds, files, pixels)


def brief(text: str) -> str:
    """The text, without its middle if it is long: an error may have the end of a log in it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 3]} [...] {text[-2 * LONGEST // 3 :]}"


def fetch_files(client: Client, result: Result) -> tuple[File, ...]:
    """The files that a run saved, or those that it only showed if it saved none."""
    listed = result.image_files()
    chosen = [file for file in listed if file["type"] == "output"] or listed
    titles = titles_of([file["filename"] for file in chosen])
    return tuple(
        File(title.replace(" #", "_"), PurePosixPath(file["filename"]).suffix, client.image_bytes(file))
        for title, file in zip(titles, chosen, strict=True)
    )
