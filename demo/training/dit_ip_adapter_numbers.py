"""How well pictures of the transformer follow the references of its IP-Adapter and a prompt, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...engine.loading import read_file
from ...nodes.ip_adapter.load import make_ip_adapter
from ..world.model import WEIGHTS
from .dit_numbers import FLOW, load_dit
from .ip_adapter_numbers import IPAdapterDemo, numbers_of
from .numbers import load_encoder

FILE = WEIGHTS / "ipadapter" / "reins-demo-dit-ip-adapter.safetensors"


def load_dit_ip_adapter_demo(path: Path = FILE) -> IPAdapterDemo:
    """The transformer with the IP-Adapter of a file."""
    return IPAdapterDemo(*load_dit(), load_encoder()[0], make_ip_adapter(read_file(path), path.name))


def dit_ip_adapter_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    yield from numbers_of(load_dit_ip_adapter_demo(path), FLOW)
