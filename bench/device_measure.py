"""Counts, times and memory of sampling runs on the device that the host has chosen."""

from __future__ import annotations

import gc
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch.profiler import ProfilerActivity

STEPS, ROUNDS = 4, 2  # an even number of steps, for a difference that is held is asked for at every second one
ALL = 1e30  # bytes
AGAIN = 10.0  # seconds until an alarm that was swallowed rings again
LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch(?!HostFunc)")  # the driver's calls that start kernels or graphs of them

Sample = Callable[[ModelPatcher, int, Callable[..., None] | None], object]  # model, steps, callback of each step


class OutOfTime(BaseException):
    """The time for something is up. No `except Exception` on the way swallows it."""


class Counts(NamedTuple):
    """Of one step."""

    calls: float
    rows: float


class Cost(NamedTuple):
    """Of one step; the bytes are the most that the device held in a run, None if nothing counts them."""

    milliseconds: float
    launches: float
    peak: int | None


class Clock:
    """Moments on the device. CUDA marks them without waiting; elsewhere what was asked for is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: list[Any] = []

    def mark(self, *_: object) -> None:
        """A callback of the host's samplers, which call it at the end of each step."""
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record(torch.cuda.current_stream(self.device))
        else:
            wait_for(self.device)
            moment = time.perf_counter()
        self.moments.append(moment)

    def milliseconds(self) -> float:
        """The mean time from one mark to the next."""
        first, last = self.moments[0], self.moments[-1]
        if self.device.type == "cuda":
            last.synchronize()
            total = first.elapsed_time(last)
        else:
            total = 1000 * (last - first)
        return total / (len(self.moments) - 1)


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was asked for."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after so many seconds.

    Windows has no alarms. There the block runs to its end.
    """
    is_possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not is_possible:
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def count(sample: Sample, model: ModelPatcher) -> Counts:
    """Calls of the network and rows in them, of the model's own network. It warms the device too."""
    rows: list[int] = []

    def note(_: object, inputs: tuple, named: dict) -> None:
        rows.append(len(inputs[0] if inputs else named["x"]))

    hook = model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        sample(model, STEPS, None)
    finally:
        hook.remove()
    return Counts(len(rows) / STEPS, sum(rows) / STEPS)


def measure(sample: Sample, model: ModelPatcher) -> Cost:
    """Time, launches and memory of a model that was sampled before."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(ROUNDS):
        clock = Clock(device)
        sample(model, STEPS + 1, clock.mark)  # from the end of the first step to that of the last
        times.append(clock.milliseconds())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    launches = [_launches(lambda steps=steps: sample(model, steps, None), device) for steps in (1, 3)]
    return Cost(statistics.median(times), (launches[1] - launches[0]) / 2, peak)


def _launches(run: Callable[[], object], device: torch.device) -> int:
    """Kernels that a run starts on CUDA; elsewhere the operators of torch that it calls."""
    is_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiled:
        run()
        wait_for(device)
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()  # raw, for to sort them into a tree takes seconds
    if is_cuda:
        return sum(LAUNCH.match(event.name()) is not None for event in events)
    return _outermost([event for event in events if event.name().startswith("aten::")])


def _outermost(events: Sequence[Any]) -> int:
    """How many events lie in no other one."""
    count, end = 0, -1
    for event in sorted(events, key=lambda each: (each.start_ns(), -each.duration_ns())):
        if event.start_ns() >= end:
            count, end = count + 1, event.start_ns() + event.duration_ns()
    return count


def forget(model: ModelPatcher | None) -> None:
    """Takes all models but this one from the device, so that the next peak holds none of them."""
    gc.collect()
    management = comfy.model_management
    management.cleanup_models()
    kept = [
        loaded
        for loaded in management.current_loaded_models
        if model is not None and loaded.model is not None and model.is_clone(loaded.model)
    ]
    management.free_memory(ALL, management.get_torch_device(), keep_loaded=kept)
    management.soft_empty_cache()
