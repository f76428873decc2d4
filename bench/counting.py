"""What a sampling run does, counted: operations of torch, and bytes at the peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from reins.tests.helpers.tiny_models import Operations, per_step

Run = Callable[[int], object]  # samples so many steps
NO_WORK = ("aten::_unsafe_view", "aten::empty", "aten::new_empty", "aten::_local_scalar_dense")  # beside views


class Work(Operations):
    """Counts operations of torch inside the block that compute or copy. On a GPU each is a launch at least."""

    def counts(self, func: Any) -> bool:
        return not (func.is_view or func.name().startswith(NO_WORK))


def operations_per_step(run: Run) -> float:
    """Operations of the second and the third step, for the first has what is done once per run."""
    return per_step(Work, run)


def peak_of(run: Run) -> int:
    """Bytes on the CPU that a step has allocated at most, beyond those from before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        run(1)
    assert profiled.profiler is not None
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each way. Every round goes through all of them in turn, so that a slow moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
