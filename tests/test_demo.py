"""The server of the demo, as far as it goes without a ComfyUI."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo.host import Host, HostDied, HostSettings  # noqa: E402
from reins.demo.pictures import contact_sheet, save_pictures  # noqa: E402


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
