"""What following a hint costs, beside the host's ControlNet on the same UNet: calls, rows, products, and times."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from reins.models.controlnext.network import ControlNeXt as Network
from reins.models.controlnext.network import Layout, Prepared, Stage
from reins.nodes.controlnext.hint import CELL
from reins.nodes.controlnext.load import make_controlnext
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.tests.helpers import controlnext, tiny_models
from torch.utils.flop_counter import FlopCounterMode

from . import cases, result_tables

CFG = 7.0
OFFICIAL = Layout((64, 64, 128), (Stage(128, 128, 4), Stage(128, 256, 8)), (128, 256), 320, True, False)
HEAD = (
    "nodes", "calls of the control network per step", "its rows per step", "its first third per run", "GMAC per step",
    "device reads per step", "ms", "to plain", "overhead to ControlNet's",
)  # fmt: skip
NOTE = (
    "The UNet and the ControlNet have SD1.5's widths and random weights, the control network those of the release. "
    "Calls, rows and products (of convolutions and matrices) are exact counts; overhead is what a step takes beyond a "
    "plain one. 'As the official pipeline' runs the control network on every row of every step."
)


class Case(NamedTuple):
    """A model, and what the prompts bring along."""

    model: ModelPatcher
    conds: dict[str, list]


class Row(NamedTuple):
    name: str
    calls: float
    rows: float
    prepared: int
    gmac: float
    reads: float
    milliseconds: float
    to_plain: float
    to_control_net: float


def control_net() -> comfy.controlnet.ControlNet:
    """The host's ControlNet for the SD1.5 of the cases: the UNet's first half, with weights that are not zero."""
    config = {**tiny_models.unet_config(**cases.REAL), "hint_channels": 3}
    for key in ("out_channels", "transformer_depth_output", "use_temporal_attention", "use_temporal_resblock"):
        del config[key]
    network = comfy.cldm.cldm.ControlNet(**config, device=tiny_models.CPU, operations=comfy.ops.disable_weight_init)
    tiny_models.randomise(network, 3)
    network.eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(network, load_device=tiny_models.CPU)


def make_cases(model: ModelPatcher, size: tuple[int, int]) -> dict[str, Case]:
    hint = controlnext.picture(1, h=CELL * size[0], w=CELL * size[1])
    made = make_controlnext(controlnext.weights(Network(OFFICIAL, comfy.ops.disable_weight_init)), "release")
    net = control_net().set_cond_hint(hint.movedim(-1, 1), strength=1.0)
    plain = {"positive": tiny_models.text(1), "negative": tiny_models.text(2)}

    def steer(**settings: object) -> ModelPatcher:
        return ControlNeXtApply.execute(model, made, hint, **settings).result[0]

    return {
        "plain": Case(model, plain),
        "host ControlNet": Case(
            model, {"positive": tiny_models.text(1, control=net), "negative": tiny_models.text(2, control=net)}
        ),
        "ControlNeXt": Case(steer(), plain),
        "ControlNeXt, cond only": Case(steer(uncond="cond only"), plain),
        "ControlNeXt, 0 to 50 %": Case(steer(end_percent=0.5), plain),
        "two ControlNeXt": Case(ControlNeXtApply.execute(steer(), made, hint).result[0], plain),
        "as the official pipeline": Case(steer(), plain),
    }


@contextmanager
def counted(every_row: bool) -> Iterator[Counter]:
    """Counts the calls of the control network; `every_row` makes it work for each of two prompts at each step."""
    counts: Counter = Counter()
    forward, prepare = Network.forward, Network.prepare

    def note_forward(network: Network, prepared: Prepared, timestep: torch.Tensor) -> torch.Tensor:
        if every_row:
            prepared = prepare(network, network.hint.repeat(2, 1, 1, 1))
        counts.update(calls=1, rows=len(prepared.x), prepared=int(every_row))
        return forward(network, prepared, timestep)[:1]

    def note_prepare(network: Network, image: torch.Tensor, *rest: Any) -> Prepared:
        network.hint = image
        counts["prepared"] += not every_row
        return prepare(network, image, *rest)

    with mock.patch.object(Network, "forward", note_forward), mock.patch.object(Network, "prepare", note_prepare):
        yield counts


def measure(network: cases.Network) -> list[Row]:
    """All cases on a network; rounds go through all of them in turn."""
    made = make_cases(network.make(), network.size)
    seconds = timed(made, network, lambda name: counted("official" in name))
    plain_reads = count(lambda: sample(made["plain"], network), tiny_models.DeviceReads()).count
    return [_row(name, case, network, seconds, plain_reads) for name, case in made.items()]


def _row(
    name: str, case: Case, network: cases.Network, seconds: dict[str, list[float]], plain_reads: int
) -> Row:  # fmt: skip
    with counted("official" in name) as counts:
        products = count(lambda: sample(case, network), FlopCounterMode(display=False)).get_total_flops() / 2
        counts = counts.copy()
        reads = count(lambda: sample(case, network), tiny_models.DeviceReads()).count - plain_reads
    steps, own, plain, net = network.steps, seconds[name], seconds["plain"], seconds["host ControlNet"]
    return Row(
        name, counts["calls"] / steps, counts["rows"] / steps, counts["prepared"], products / steps / 1e9,
        reads / steps, 1000 * statistics.median(own) / steps,
        statistics.median(a / b for a, b in zip(own, plain, strict=True)),
        statistics.median((a - b) / (c - b) for a, b, c in zip(own, plain, net, strict=True)),
    )  # fmt: skip


def timed(
    made: Mapping[str, Case], network: cases.Network, inside: Callable[[str], AbstractContextManager]
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each case's runs, inside of what its name asks for; rounds go through all cases in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(network.rounds):
        for name, case in made.items():
            with inside(name):
                start = time.perf_counter()
                sample(case, network)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def count(run: Callable[[], None], mode: Any) -> Any:
    with mode:
        run()
    return mode


def table(network: cases.Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"ControlNeXt on {network.name}", network.size, f"cfg {CFG:g}")
    cells = [
        (
            row.name, f"{row.calls:.3g}", f"{row.rows:.3g}", f"{row.prepared}", f"{row.gmac:.1f}", f"{row.reads:+.3g}",
            f"{row.milliseconds:.0f}", f"{row.to_plain:.2f}", f"{row.to_control_net:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)


def sample(case: Case, network: cases.Network) -> None:
    tiny_models.sample(case.model, network.size, cfg=CFG, steps=network.steps, **case.conds)
