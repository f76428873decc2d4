"""One real server for all tests in this folder, and a watch on its log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from reins.demo.client import Client
    from reins.demo.host import Host

CHECKPOINT_KIND = "sd15-min"
TRACEBACK = "Traceback (most recent call last)"


class Server(NamedTuple):
    """What a test needs of the server: someone to talk to, a checkpoint's name, and what was logged until it was up."""

    host: Host
    client: Client
    checkpoint: str
    boot_log: str


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The host that COMFYUI_PATH names, on the CPU, with the pack linked in and nothing else."""
    from reins.demo.host import Host, HostSettings, write_weightless
    from reins.tests.helpers.named_host import host_folder

    settings = HostSettings(host_folder(), tmp_path_factory.mktemp("base"))
    settings.checkpoints.mkdir(parents=True)
    checkpoint = write_weightless(settings.comfy, CHECKPOINT_KIND, settings.checkpoints)
    with Host(settings) as host:
        yield Server(host, host.client, checkpoint, host.log())


@pytest.fixture(autouse=True)
def expected_in_tracebacks(server: Server) -> Iterator[list[str]]:
    """Fails a test during which the server logged a traceback, unless the test appended a text that is in it."""
    before = len(server.host.log())
    expected: list[str] = []
    yield expected
    logged = server.host.log()[before:].split(TRACEBACK)[1:]
    surprises = [text for text in logged if not any(part in text for part in expected)]
    assert not surprises, f"the server logged: {TRACEBACK}{surprises[0]}"
