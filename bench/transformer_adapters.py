"""What an IP-Adapter costs on diffusion transformers: products, resamplers and bytes, counted; times as ratios."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.run import RUN
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.nodes.ip_adapter.prompt import ImageTokens, IPAdapter
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.ip_adapters_by_hand import instantx_flux_tokens
from reins.tests.helpers.tiny_models import DeviceReads
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, nested, sd3_file, xlabs_file
from torch import Tensor, nn

from . import packs, result_tables
from .diffusion_transformers import CFG, sample_on

HEAD = (
    "nodes", "calls per step", "rows per step", "k and v made per run", "resamplers per step",
    "weights read per step, MB", "weights held, MB", "k and v kept, MB", "device reads per step", "ms", "to plain",
)  # fmt: skip
NOTE = (
    "Random weights; texts of 77 tokens. 'k and v made' counts matrix products of image tokens, one for k and one for "
    "v. 'weights read' are those of the adapter's layers and resampler that a step computes with, mean over the run; "
    "'weights held' those that stay where the model is for the whole run; 'kept' is what the run holds at its last "
    "step."
)
MASK = torch.ones(1, 64, 64)
MASK[..., :32] = 0.5


class Network(NamedTuple):
    """A network of the host, and how long it is measured."""

    name: str
    family: str
    changes: dict
    size: tuple[int, int]
    steps: int = 4
    rounds: int = 7


class Acting(NamedTuple):
    """A model with what acts on it. `parts` hold the adapter's weights, and `stay` says that they are always there."""

    model: ModelPatcher
    parts: Sequence[nn.Module] = ()
    resamplers: Sequence[nn.Module] = ()
    patchers: Sequence[ModelPatcher] = ()
    stay: bool = False


class Row(NamedTuple):
    """A way of prompting with pictures; bytes in the middle of a run."""

    name: str
    calls: float
    rows: float
    products: int
    resamplers: float
    read: float
    held: int
    kept: int
    reads: float
    milliseconds: float
    to_plain: float


SD3 = Network(
    "the layout of SD3.5 Large, 256 wide", "sd3",
    {"depth": 4, "num_blocks": 38, "pos_embed_max_size": 64, "num_patches": 4096, "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": tiny_transformers.WIDTH, "out_features": 256}}},
    (24, 24),
)  # fmt: skip
FLUX = Network(
    "the layout of Flux, a third of its blocks, 256 wide", "flux",
    {"depth": 6, "depth_single_blocks": 12, "hidden_size": 256, "num_heads": 4, "axes_dim": [16, 24, 24]}, (32, 32),
)  # fmt: skip
NETWORKS = [SD3, FLUX]


def drawn(*shape: int) -> Tensor:
    """What an encoder gave, seeded."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ours(*used: tuple[IPAdapter, ImageTokens], **settings: object) -> Callable[[ModelPatcher], Acting]:
    """IP-Adapter Apply, once for each adapter."""

    def steer(model: ModelPatcher) -> Acting:
        for made, tokens in used:
            (model,) = IPAdapterApply.execute(model, made, tokens, 0.7, **settings).result
        timed = [made.projection for made, _ in used if made.kind.form == "sd3"]
        patchers = [*timed, *(made.layers for made, _ in used)]
        return Acting(model, [one.model for one in patchers], [one.model for one in timed], patchers)

    return steer


def theirs(make: Callable[[ModelPatcher], packs.PackRun]) -> Callable[[ModelPatcher], Acting]:
    """Another pack, whose weights stay on the device outside the host's books."""

    def steer(model: ModelPatcher) -> Acting:
        made = make(model)
        resamplers = [made.projection] if made.projection is not None else []
        return Acting(made.model, [made.layers, *resamplers], resamplers, stay=True)

    return steer


def ways_of(network: Network, folder: Path | None) -> dict[str, Callable[[ModelPatcher], Acting]]:
    """All ways on a network, with those of the packs in a folder."""
    if network.family == "sd3":
        file, hidden = sd3_file(layers=38, hidden=256, width=64, tokens=64, dim=256, depth=4), drawn(1, 243, 64)
        one = _encoded(file, "instantx-sd3.safetensors", hidden)
        ways = _ways("InstantX", one)
        if folder is not None:
            ways[packs.SD3_PACK] = theirs(lambda model: packs.sd3(folder, model, nested(file), hidden))
        return ways
    xlabs = _encoded(xlabs_file(blocks=6, hidden=256, tokens=16), "xlabs.safetensors", drawn(1, 12))
    file, pooled = instantx_flux_file(double=6, single=12, hidden=256, tokens=128), drawn(1, 12)
    instantx = _encoded(file, "instantx-flux.safetensors", pooled)
    ways = {**_ways("XLabs", xlabs), **_ways("InstantX", instantx), "XLabs and InstantX": ours(xlabs, instantx)}
    if folder is not None:
        tokens = instantx_flux_tokens(file, pooled)
        ways[packs.FLUX_PACK] = theirs(lambda model: packs.flux(folder, model, nested(file), tokens))
    return ways


def _ways(name: str, one: tuple[IPAdapter, ImageTokens]) -> dict[str, Callable[[ModelPatcher], Acting]]:
    return {
        "plain": Acting, name: ours(one), f"{name} with mask": ours(one, mask=MASK),
        f"{name}, 0 to 50 %": ours(one, end_percent=0.5), f"two {name}": ours(one, one),
    }  # fmt: skip


def _encoded(file: dict[str, Tensor], name: str, read: Tensor) -> tuple[IPAdapter, ImageTokens]:
    made = make_ip_adapter(file, name)
    return made, IPAdapterEncode.execute(made, clip_vision_output=read).result[0]


@contextmanager
def observed(acting: Acting) -> Iterator[Counter]:
    """Counts products, resamplers and bytes of weights of an adapter, and notes what the run holds at the end."""
    counts: Counter = Counter()

    def note_leaf(name: str) -> Callable[..., None]:
        def note(module: nn.Module, *_: object) -> None:
            counts["read"] += sum(weight.nbytes for weight in module.parameters(recurse=False))
            counts["products"] += name.endswith(("to_k_ip", "to_v_ip", "_k_proj", "_v_proj"))

        return note

    def note_call(_: nn.Module, inputs: tuple, options: dict, __: object) -> None:
        counts.update(calls=1, rows=len(inputs[0]))
        told = [value for value in (*inputs, *options.values()) if isinstance(value, dict)]
        run = next((value[RUN] for value in told if RUN in value), None)
        if run is not None:
            held = [*run._made.values(), *(made for _, at in run._at.values() for made in at.values())]
            counts["kept"] = sum(_bytes(made) for made in held)

    hooks = [
        module.register_forward_pre_hook(note_leaf(name))
        for part in {id(part): part for part in acting.parts}.values()
        for name, module in part.named_modules()
    ]
    hooks += [
        part.register_forward_pre_hook(lambda *_: counts.update(resamplers=1))
        for part in {id(part): part for part in acting.resamplers}.values()
    ]
    hooks.append(acting.model.model.diffusion_model.register_forward_hook(note_call, with_kwargs=True))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def measure(network: Network, folder: Path | None = None) -> tuple[list[Row], list[str]]:
    """All ways on a network, and why packs could not run. Rounds go through all ways in turn."""
    model = tiny_transformers.make(network.family, **network.changes)
    acting: dict[str, Acting] = {}
    failed = []
    for name, steer in ways_of(network, folder).items():
        try:
            acting[name] = steer(model)
            sample_on(network, acting[name].model)
        except Exception as error:
            if name not in (packs.SD3_PACK, packs.FLUX_PACK):
                raise
            acting.pop(name, None)
            failed.append(f"{name} did not run: {type(error).__name__}: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in acting}
    for _ in range(network.rounds):
        for name, one in acting.items():
            start = time.perf_counter()
            sample_on(network, one.model)
            seconds[name].append(time.perf_counter() - start)
    return [_row(network, name, acting, seconds) for name in acting], failed


def _row(network: Network, name: str, acting: dict[str, Acting], seconds: dict[str, list[float]]) -> Row:
    one, steps = acting[name], network.steps
    with observed(one) as counts:
        sample_on(network, one.model)
    loaded = {id(found.model) for found in comfy.model_management.current_loaded_models}
    held = [patcher.model for patcher in one.patchers if id(patcher) in loaded]
    stays = {id(part): part for part in (one.parts if one.stay else held)}.values()
    return Row(
        name, counts["calls"] / steps, counts["rows"] / steps, counts["products"], counts["resamplers"] / steps,
        counts["read"] / steps, sum(weight.nbytes for part in stays for weight in part.parameters()), counts["kept"],
        (_reads(network, one.model) - _reads(network, acting["plain"].model)) / steps,
        1000 * statistics.median(seconds[name]) / steps,
        statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)),
    )  # fmt: skip


def table(network: Network, rows: Sequence[Row], failed: Sequence[str] = ()) -> list[str]:
    """The lines of a table."""
    what = f"IP-Adapter on diffusion transformers: {network.name}"
    cells = [
        (
            row.name, f"{row.calls:.3g}", f"{row.rows:.3g}", f"{row.products}", f"{row.resamplers:.3g}",
            f"{row.read / 1e6:.2f}", f"{row.held / 1e6:.2f}", f"{row.kept / 1e6:.2f}", f"{row.reads:+.3g}",
            f"{row.milliseconds:.0f}", f"{row.to_plain:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    lines = result_tables.table(
        result_tables.on_a_latent(what, network.size, f"cfg {CFG:g}"),
        result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells,
    )  # fmt: skip
    return [*lines, *(part for reason in failed for part in (reason, ""))]


def _reads(network: Network, model: ModelPatcher) -> int:
    with DeviceReads() as reads:
        sample_on(network, model)
    return reads.count


def _bytes(made: object) -> int:
    parts = made if isinstance(made, tuple) else (made,)
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))
