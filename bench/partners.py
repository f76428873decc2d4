"""What a picture beside the sampled one costs: rows, products, and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from comfy.model_patcher import ModelPatcher
from reins.engine.layers.projections import AttentionState
from reins.models.unicon.network import Projected
from reins.nodes.unicon.side_by_side import SideBySide
from reins.tests.helpers import tiny_models, unicon
from torch.utils.flop_counter import FlopCounterMode

from . import cases, result_tables

CFG = 7.0
RANK = 64  # of the release
HEAD = ("nodes", "calls per step", "rows per step", "GMAC per step", "device reads per step", "ms", "to plain")
NOTE = (
    "The UNet has SD1.5's widths and random weights, the file rank 64 and all blocks. Calls, rows and products (of "
    "convolutions, matrices and attentions) are exact counts. 'With projections of its own' makes q, k and v of the "
    "joint attention anew, as the official code does, where the node takes those of the self-attention. For the "
    "guidance the official code runs two rows more, for the negative too and with the partner; the node one."
)


class Case(NamedTuple):
    """A model, and how many pictures of it are sampled."""

    model: ModelPatcher
    batch: int = 1
    shares: bool = True


class Row(NamedTuple):
    name: str
    calls: float
    rows: float
    gmac: float
    reads: float
    milliseconds: float
    to_plain: float


def make_cases(model: ModelPatcher, size: tuple[int, int]) -> dict[str, Case]:
    file = unicon.file_for(model, rank=RANK, size=0.1)
    partner = unicon.latent(size)

    def beside(model: ModelPatcher, **settings: object) -> ModelPatcher:
        return unicon.apply(model, weights=file, partner=partner, **settings)

    return {
        "plain": Case(model),
        "plain, two pictures": Case(model, 2),
        "UniCon Apply": Case(beside(model)),
        "UniCon Apply, with projections of its own": Case(beside(model), shares=False),
        "UniCon Apply, 0 to 50 %": Case(beside(model, end_percent=0.5)),
        "UniCon Apply, condition guidance": Case(beside(model, condition_guidance=2.0)),
        "two UniCon Apply": Case(beside(beside(model))),
        "UniCon Apply Joint": Case(unicon.joint(model, weights=file), 2),
    }


@contextmanager
def projecting(shares: bool) -> Iterator[None]:
    """Whether the joint attention takes q, k and v from the self-attention."""
    if shares:
        yield
        return

    def anew(state: AttentionState) -> Projected:
        hidden, attention = state.inputs.hidden, state.attention
        return Projected(hidden, attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden))

    with mock.patch.object(SideBySide, "_projected", staticmethod(anew)):
        yield


def measure(network: cases.Network) -> list[Row]:
    """All cases on a network; rounds go through all of them in turn."""
    model = network.make()
    made = make_cases(model, network.size)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(network.rounds):
        for name, case in made.items():
            start = time.perf_counter()
            _sample(case, network)
            seconds[name].append(time.perf_counter() - start)
    with tiny_models.DeviceReads() as reads:
        _sample(made["plain"], network)
    return [_row(name, case, network, model, seconds, reads.count) for name, case in made.items()]


def _row(
    name: str, case: Case, network: cases.Network, model: ModelPatcher, seconds: dict[str, list[float]],
    plain_reads: int,
) -> Row:  # fmt: skip
    with (
        tiny_models.forwards(model) as rows,
        tiny_models.DeviceReads() as reads,
        FlopCounterMode(display=False) as products,
    ):
        _sample(case, network)
    steps, own, plain = network.steps, seconds[name], seconds["plain"]
    return Row(
        name, len(rows) / steps, sum(rows) / steps, products.get_total_flops() / 2 / steps / 1e9,
        (reads.count - plain_reads) / steps, 1000 * statistics.median(own) / steps,
        statistics.median(a / b for a, b in zip(own, plain, strict=True)),
    )  # fmt: skip


def table(network: cases.Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"UniCon on {network.name}", network.size, f"cfg {CFG:g}")
    cells = [
        (
            row.name, f"{row.calls:.3g}", f"{row.rows:.3g}", f"{row.gmac:.1f}", f"{row.reads:+.3g}",
            f"{row.milliseconds:.0f}", f"{row.to_plain:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)


def _sample(case: Case, network: cases.Network) -> None:
    with projecting(case.shares):
        tiny_models.sample(case.model, network.size, batch=case.batch, cfg=CFG, steps=network.steps)
