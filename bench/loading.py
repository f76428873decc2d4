"""What loading a large file costs: processor time, and memory that is the process's own."""

from __future__ import annotations

import ctypes
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import comfy.ops
import torch
from reins.engine.loading import read_file
from reins.models.ip_adapter.files import take_apart
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers.released_files import TABLES
from safetensors.torch import load_file, save_file

from . import result_tables

NAME = "plus_sdxl_vit-h"
HEAD = ("way", "processor seconds", "own memory kept, MiB", "to copying, seconds", "memory")
NOTE = (
    "The file has the tensors of ip-adapter-plus_sdxl_vit-h. *Copying* builds the networks in memory, copies the "
    "tensors into them and looks for numbers that are not finite, as this pack did; *copying to float32* is what "
    "packs do that compute in single precision. Memory is RssAnon, without pages of the file that the system keeps."
)
STATUS = Path("/proc/self/status")  # Linux alone has it


class Cost(NamedTuple):
    seconds: float
    memory: float  # MiB


def measure() -> dict[str, Cost]:
    """What each way costs for one file on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in TABLES[NAME].items()}, path)
        read_file(path)  # warms the cache of the system
        ways: dict[str, Callable[[], object]] = {
            "Load IP-Adapter": lambda: make_ip_adapter(read_file(path), path.name),
            "copying": lambda: copied(path, torch.float16),
            "copying to float32": lambda: copied(path, torch.float32),
        }
        return {name: cost_of(way) for name, way in ways.items()}


def copied(path: Path, dtype: torch.dtype) -> list[torch.nn.Module]:
    """The networks of a file with copies of its tensors."""
    parts = take_apart(load_file(path), path.name)
    found = []
    for make, weights in ((parts.make_projection, parts.projection), (parts.make_layers, parts.layers)):
        assert all(value.isfinite().all() for value in weights.values())
        network = partial(make, operations=comfy.ops.manual_cast, device=torch.device("cpu"), dtype=dtype)()
        network.load_state_dict(dict(weights))
        found.append(network)
    return found


def cost_of(way: Callable[[], object]) -> Cost:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier way has freed would be used again and count for nothing
    before, start = own_memory(), time.process_time()
    kept = way()
    seconds = time.process_time() - start
    memory = own_memory() - before
    del kept
    return Cost(seconds, memory)


def own_memory() -> float:
    """MiB of memory that belongs to the process alone."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def table(costs: dict[str, Cost]) -> list[str]:
    like = costs["copying"]
    cells = [
        (
            name, f"{cost.seconds:.2f}", f"{cost.memory:.0f}", f"{cost.seconds / like.seconds:.2f}",
            f"{cost.memory / like.memory:.2f}",
        )
        for name, cost in costs.items()
    ]  # fmt: skip
    return result_tables.table("Loading an IP-Adapter of 808 MiB", NOTE, HEAD, cells)
