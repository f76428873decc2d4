"""Counts and times of sampling runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import tiny_models

from .cases import CASES, Case, Network


class Row(NamedTuple):
    """A case on a network; all figures per sampler step. Ratios are medians over interleaved rounds."""

    case: Case
    calls: float
    rows: float
    reads: float
    milliseconds: float
    to_plain: float
    to_against: float


def measure(network: Network, cases: Sequence[Case] = CASES) -> Iterable[Row]:
    """Some cases on a network. Rounds go through all cases in turn, so that a slow moment hits all alike."""
    model, steps = network.make(), network.steps
    steered = {case: case.steer(model) for case in cases}
    counts = {case: _count(model, steered[case], case, network) for case in cases}
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(network.rounds):
        for case in cases:
            start = time.perf_counter()
            _sample(steered[case], case, network)
            seconds[case].append(time.perf_counter() - start)
    by_name = {(case.name, case.cfg): case for case in cases}
    for case in cases:
        calls, rows, reads = counts[case]
        plain, against = by_name["plain", case.cfg], by_name[case.against, case.cfg]
        yield Row(
            case, calls / steps, rows / steps, (reads - counts[plain][2]) / steps,
            1000 * statistics.median(seconds[case]) / steps,
            _ratio(seconds[case], seconds[plain]), _ratio(seconds[case], seconds[against]),
        )  # fmt: skip


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _count(model: ModelPatcher, steered: ModelPatcher, case: Case, network: Network) -> tuple[int, int, int]:
    with tiny_models.forwards(model) as rows, tiny_models.DeviceReads() as reads:
        _sample(steered, case, network)
    return len(rows), sum(rows), reads.count


def _sample(steered: ModelPatcher, case: Case, network: Network) -> None:
    tiny_models.sample(steered, network.size, cfg=case.cfg, steps=network.steps)
