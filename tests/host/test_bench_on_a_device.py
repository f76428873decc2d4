"""The bench for a device, whole and in small: what it counts is known, and what it leaves out is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import comfy.model_management
import pytest
import torch
from reins.bench import device, device_measure, device_networks
from reins.bench.device_cases import Case, cases_of
from reins.bench.device_networks import NETWORKS, SMALL, make

COUNTS = {  # calls of the network and rows in them, of a step at cfg 5
    "plain": (1, 2),
    "host PAG": (2, 3),
    "PAG": (1, 3),
    "PAG, refresh 2": (1, 2.5),
    "IP-Adapter": (1, 2),
    "stack: PAG, SEG, TPG": (1, 5),
}


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(device_measure, "STEPS", 2)
    monkeypatch.setattr(device_measure, "ROUNDS", 1)


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """The cells of each row by its name."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "nodes"}


def test_the_small_form_counts_what_is_known(brief):
    lines = device.page(SMALL[:1], 300, device.NONE, list(COUNTS))
    rows = rows_of(lines)
    assert set(rows) == set(COUNTS)
    for name, (calls, of_network) in COUNTS.items():
        assert [float(cell) for cell in rows[name][:2]] == [calls, of_network], name
    assert float(rows["host PAG"][2]) > 1.9 * float(rows["plain"][2]) > 1.5 * float(rows["PAG"][2])
    assert all(float(rows[name][3]) > 0 for name in COUNTS)


def test_operators_are_those_that_are_called_from_outside_of_torch():
    x, ones = torch.ones(2, 3), torch.ones(3, 3)

    def run() -> None:
        torch.nn.functional.linear(x, ones).relu().sum()  # linear calls three others

    assert device_measure._launches(run, torch.device("cpu")) == 3


def test_transformers_are_measured_too(brief):
    for network in SMALL[2:]:
        rows = rows_of(device.page([network], 300, device.NONE, ["plain", "SLG"]))
        assert [float(cell) for cell in rows["plain"][:2]] == [1, 2]
        assert [float(cell) for cell in rows["SLG"][:2]] == [1, 3]


def test_the_script_names_the_device_and_compiles_a_plain_network():
    before = device.DEVICE.read_text(encoding="utf-8")
    command = [sys.executable, device.__file__, "--small", "--backend", "eager"]
    command += ["--networks", "tiny SD1.5", "--cases", "plain", "PAG"]
    environment = {**os.environ, "COMFYUI_PATH": os.environ["COMFYUI_PATH"].split(os.pathsep)[0]}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert f"- Device: {device.name_of(torch.device('cpu'))}" in ran.stdout
    assert f"- torch {torch.__version__}" in ran.stdout and "Left out" not in ran.stdout
    rows = rows_of(ran.stdout.splitlines())
    plain, compiled = rows["plain"][2:6], rows["plain"][6:]
    assert compiled[0] in ("1", "2") and compiled[1] == plain[0]  # two on hosts that guard their options
    assert [float(cell) for cell in rows["PAG"][:2]] == [1, 3] and rows["PAG"][6]
    assert device.DEVICE.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("place", range(len(SMALL)))
def test_all_cases_of_a_network_can_be_made(place):
    with torch.inference_mode():
        model = make(SMALL[place])
        names = [case.name for case in cases_of(SMALL[place], model) if case.steer(model) is not None]
    assert len(set(names)) == len(names) > 15


def test_what_had_no_time_or_failed_is_said(brief):
    network = SMALL[0]

    def fails(model):
        raise ValueError("no such thing\nat all")

    with torch.inference_mode():
        bench = device.Bench(network, make(network), device.Timer(0), "eager")
        bench.run([Case("plain", lambda model: model)])
        assert bench.omitted == ["plain"] and not bench.lines
        bench._attempt("one that fails", lambda: fails(None), 10)
        bench._attempt("one that is slow", lambda: time.sleep(5), 0.1)
    assert bench.said[-2:] == ["one that fails: ValueError: no such thing", "one that is slow: stopped after 0 s"]
    assert "- Left out, for the time was up: plain" in bench.table()


def test_where_the_plain_network_is_not_compiled_in_time_no_other_is_tried(brief, monkeypatch):
    monkeypatch.setattr(device.Bench, "_compiled", lambda *_: time.sleep(5))
    monkeypatch.setattr(device, "COMPILE", 0.1)
    cases = [Case("plain", lambda model: model), Case("again", lambda model: model)]
    with torch.inference_mode():
        bench = device.Bench(SMALL[0], make(SMALL[0]), device.Timer(100), "eager")
        bench.run(cases)
    assert list(bench.lines) == ["plain", "again"]
    assert bench.said == [
        "plain, compiled: stopped after 0 s", "plain was not compiled, so nothing else was",
    ]  # fmt: skip


def test_a_network_that_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 1e6)
    (said,) = device.benches(SMALL[:1], 10, "eager")
    assert said.startswith("tiny SD1.5: left out: tiny SD1.5 needs 0 GB, and 0 are free")


@pytest.mark.parametrize(
    ("arguments", "on_device", "written"),
    [
        ([], True, True),
        ([], False, False),
        (["--small"], True, False),
        (["--cases", "plain"], True, False),
        (["--networks", "SDXL"], True, False),
        (["--small", "--write"], False, True),
    ],
)
def test_a_trial_is_not_written_over_the_page_of_a_device(arguments, on_device, written):
    assert device.writes(device.options_of(arguments), on_device) is written


def test_launches_are_told_from_other_calls_of_the_driver():
    launches = (
        "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch",
        "cudaLaunchCooperativeKernel", "hipLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel",
    )  # fmt: skip
    others = ("cudaMemcpyAsync", "cudaDeviceSynchronize", "cudaLaunchHostFunc", "cudaEventRecord", "aten::mm")
    assert all(device_measure.LAUNCH.match(name) for name in launches)
    assert not any(device_measure.LAUNCH.match(name) for name in others)


WEIGHTS = {"SD1.5": 859_520_964, "SDXL": 2_567_463_684}  # of the released UNets


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_networks_have_the_sizes_of_releases(network):
    model = device_networks._build(network, torch.float16, torch.device("meta"))
    count = sum(p.numel() for p in model.diffusion_model.parameters())
    assert count == WEIGHTS.get(network.name, count) and 0.8e9 < count < 5e9
    assert {p.dtype for p in model.diffusion_model.parameters()} == {torch.float16}
    assert model.manual_cast_dtype in (None, torch.float32)  # float32 on a CPU, which has no fast halves


def test_on_cuda_steps_are_timed_by_events_and_waited_for_once(monkeypatch):
    waited = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.number, self.stream = Event.made, None

        def record(self, stream: str) -> None:
            self.stream = stream

        def synchronize(self) -> None:
            waited.append(self.number)

        def elapsed_time(self, other: Event) -> float:
            assert self.stream == other.stream == "the stream of cuda:0"
            return 7.0 * (other.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: f"the stream of {place}")
    clock = device_measure.Clock(torch.device("cuda", 0))
    for step in range(5):
        clock.mark(step, None, None, 5)
    assert clock.milliseconds() == 7.0 and waited == [5]


def test_models_that_nobody_needs_leave_the_device_and_the_network_stays():
    first, second = (make(SMALL[0]) for _ in range(2))
    comfy.model_management.load_models_gpu([first.clone(), second])
    device_measure.forget(first)
    held = [loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model is not None]
    assert first.model in held and second.model not in held
    device_measure.forget(None)
    assert not comfy.model_management.current_loaded_models
