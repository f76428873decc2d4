"""What files cost beside an older build of the pack and beside IPAdapter_plus: processor time, and memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import unet_of
from reins.tests.helpers import controlnext, tiny_models
from reins.tests.helpers.released_files import TABLES
from torch import Tensor

from . import packs, result_tables
from .against import ADAPTER_PEER as PEER
from .against import TITLE
from .builds import Build, Shelf, shelf
from .loading import NAME, own_memory

ROUNDS, EVERY = 3, 0.001  # seconds between two looks at the memory
HEAD = (
    "way", "build", "processor seconds", "memory kept, MiB", "at the peak, MiB", "to the older build, seconds", "kept",
    "peak",
)  # fmt: skip
NOTE = (
    "Medians of {rounds} rounds in turn. Memory is RssAnon beyond that from before, without pages of files that the "
    "system keeps. The older build is the commit {older}."
)
ADAPTER = (
    "The file has the tensors of ip-adapter-plus_sdxl_vit-h in float16. IPAdapter_plus makes its network when it is "
    "applied, in single precision on a CPU, and that is counted with its loader."
)
UNET = (
    "A file with values for all weights of a UNet of {size:.0f} MiB, beside ControlNeXt. *apply* loads the file and "
    "applies it, which finds out what it holds. *patch* puts it into the model's weights as a run does, and keeps the "
    "weights from before."
)


class Cost(NamedTuple):
    """Memory in MiB."""

    seconds: float
    kept: float
    peak: float


class Way(NamedTuple):
    """A name and a build for the table, what is measured, and what takes it back."""

    name: str
    build: str
    act: Callable[[], object]
    undo: Callable[[], object] = lambda: None


@contextmanager
def peak_of_memory() -> Iterator[list[float]]:
    """The most MiB that belonged to the process in the block, in a list of one number."""
    most, over = [own_memory()], threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            most[0] = max(most[0], own_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
        most[0] = max(most[0], own_memory())


def cost_of(way: Way) -> Cost:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier would be used again and count for nothing
    before = own_memory()
    with peak_of_memory() as peak:
        start = time.thread_time()
        kept = way.act()
        seconds = time.thread_time() - start
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    memory = own_memory() - before
    del kept
    way.undo()
    return Cost(seconds, memory, peak[0] - before)


def measure(ways: Sequence[Way]) -> dict[Way, Cost]:
    """Rounds go through all ways in turn, after one that warms the caches."""
    rounds = [{way: cost_of(way) for way in ways} for _ in range(ROUNDS + 1)][1:]
    return {way: Cost(*(statistics.median(each[way][i] for each in rounds) for i in range(3))) for way in ways}


def of_adapter(builds: Sequence[Build], files: Shelf, folder: Path | None) -> list[Way]:
    tensors = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in TABLES[NAME].items()}
    name = files.put("ipadapter", "adapter.safetensors", tensors)
    ways = [
        Way("Load IP-Adapter", build.name, lambda build=build: build.run("IPAdapterLoader", name=name))
        for build in builds
    ]
    if folder is not None:
        ways.append(Way("IPAdapter", PEER, lambda: their_adapter(folder, files.folder / "ipadapter" / name)))
    return ways


def their_adapter(folder: Path, path: Path) -> tuple[object, torch.nn.Module]:
    """The network of an IP-Adapter plus for SDXL as IPAdapter_plus makes it, and the file that it holds beside it."""
    file = packs.load(folder, PEER, "utils").ipadapter_model_loader(str(path))
    network = packs.load(folder, PEER, "IPAdapterPlus").IPAdapter(
        file, cross_attention_dim=1280, output_cross_attention_dim=2048, clip_embeddings_dim=1280,
        clip_extra_context_tokens=16, is_sdxl=True, is_plus=True,
    )  # fmt: skip
    return file, network.to("cpu", dtype=torch.float32)


class OnUNet:
    """ControlNeXt with values for a whole UNet, applied by builds to one model."""

    def __init__(self, files: Shelf) -> None:
        self.model = tiny_models.sd15(
            model_channels=192, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4, num_heads=8,
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3,
        )  # fmt: skip
        weights: Mapping[str, Tensor] = unet_of(self.model).state_dict()
        self.size = sum(value.nbytes for value in weights.values()) / 2**20
        values = {key: value + 0.01 * value.flip(0) for key, value in weights.items()}
        self.unet = files.put("controlnext", "unet.safetensors", values)
        self.control = files.put("controlnext", "control.safetensors", controlnext.file_for(self.model))
        self.hint = controlnext.picture(1)

    def apply(self, build: Build) -> ModelPatcher:
        loaded = build.run("ControlNeXtLoader", control_name=self.control, unet_name=self.unet)
        return build.run("ControlNeXtApply", model=self.model, controlnext=loaded, image=self.hint)

    def ways(self, build: Build) -> list[Way]:
        steered = self.apply(build)

        def patch() -> None:
            comfy.model_management.load_models_gpu([steered])

        return [
            Way("apply", build.name, lambda: self.apply(build)),
            Way("patch", build.name, patch, comfy.model_management.unload_all_models),
        ]


def tables(builds: Sequence[Build], folder: Path | None) -> Iterator[list[str]]:
    note = NOTE.format(rounds=ROUNDS, older=builds[-1].name)
    with shelf() as files:
        costs = measure(of_adapter(builds, files, folder))
        yield table("loading an IP-Adapter of 808 MiB", f"{ADAPTER} {note}", costs, builds)
        unet = OnUNet(files)
        costs = measure([way for build in builds for way in unet.ways(build)])
        yield table("weights of a UNet from a file", f"{UNET.format(size=unet.size)} {note}", costs, builds)


def table(what: str, words: str, costs: Mapping[Way, Cost], builds: Sequence[Build]) -> list[str]:
    older = {way.name: cost for way, cost in costs.items() if way.build == builds[-1].name}
    cells = []
    for way, cost in costs.items():
        like = older.get(way.name)
        compared = ["", "", ""]
        if like is not None and way.build == builds[0].name:
            compared = [f"{ours / max(theirs, 1e-9):.2f}" for ours, theirs in zip(cost, like, strict=True)]
        cells.append((way.name, way.build, f"{cost.seconds:.2f}", f"{cost.kept:.0f}", f"{cost.peak:.0f}", *compared))
    return result_tables.table(TITLE + what, words, HEAD, cells)
