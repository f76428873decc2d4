"""The server of the demo, as far as it goes without a ComfyUI."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")

from reins.demo.host import Host, HostDied, HostSettings


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
