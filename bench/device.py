"""python3 dev.py bench --device: what the nodes cost on this machine's device, written to bench/DEVICE.md.

It takes 8 minutes at most and says what it has left out. On a CPU it is for trying it with --small, and prints alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from reins.bench.device_cases import Case
    from reins.bench.device_measure import Cost, Counts
    from reins.bench.device_networks import Network

ROOT = Path(__file__).resolve().parents[1]
DEVICE = ROOT / "bench" / "DEVICE.md"
MINUTES, RESERVE = 8.0, 10.0  # of the time, so many seconds are left for the start and the page
PLAINLY = 0.7  # of a network's time at most, and what is left is for compiling
COMPILE = 75.0  # seconds for one method to be compiled
NONE = "none"  # without compiling
GRAPHS = 6  # torch keeps eight for a network, and runs what comes after them without compiling
HEAD = (
    "nodes", "calls per step", "rows per step", "launches per step", "ms per step", "to plain", "peak, MB",
    "compiled: graphs", "launches per step", "ms per step", "to plain", "peak, MB",
)  # fmt: skip
WORDS = "Latent {h}x{w}, cfg {cfg:g}, one picture, {dtype}, weights of {size:.0f} MB, {steps} steps in {rounds} rounds."
START = (
    "# What the nodes cost on a device", "",
    "Written by `python3 dev.py bench --device`. Calls of the network and their rows are exact counts. {launches} of "
    "the second and third step. Times are the device's own, from the end of the first step to that of the last, "
    "without loading. Peak is the most memory that the device held in a run, with the weights. Networks have the "
    "sizes of releases and random weights. The compiled columns are behind the host's node TorchCompileModel with the "
    "backend {backend}; the time to compile is not in them. They are empty if the time was up.", "",
)  # fmt: skip
KERNELS = "Launches are kernels that torch's profiler saw, in the mean"
OPERATORS = "Launches are operators of torch that its profiler saw, for a CPU has no kernels, in the mean"


class Line(NamedTuple):
    """A case that was measured. The rest is there if the time was enough for it."""

    name: str
    counts: Counts
    cost: Cost
    graphs: int | None = None
    compiled: Cost | None = None


class Timer:
    """The time that is left of a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


class Bench:
    """A network with its cases, measured until a time is up. `said` tells what failed, `omitted` what had no time."""

    def __init__(self, network: Network, model: ModelPatcher, timer: Timer, backend: str) -> None:
        self.network, self.model, self.timer, self.backend = network, model, timer, backend
        self.lines: dict[str, Line] = {}
        self.said: list[str] = []
        self.omitted: list[str] = []
        self.made = 0  # graphs that torch holds

    def sample(self, model: ModelPatcher, steps: int, callback: object = None) -> object:
        from reins.bench.device_networks import sample

        return sample(self.network, model, steps, callback)

    def run(self, cases: Sequence[Case]) -> None:
        plainly = Timer(PLAINLY * self.timer.left())
        for case in cases:
            self._attempt(case.name, lambda case=case: self._plainly(case), plainly.left())
        torch._dynamo.reset()
        for case in cases if self.backend != NONE else ():
            if case.name in self.lines:
                seconds = min(COMPILE, self.timer.left())
                self._attempt(f"{case.name}, compiled", lambda case=case: self._compiled(case), seconds)
            if case is cases[0] and not any(line.compiled for line in self.lines.values()):
                self.said.append(f"{case.name} was not compiled, so nothing else was")
                break
        torch._dynamo.reset()

    def _attempt(self, what: str, act: object, seconds: float) -> None:
        """Does something that may fail or take too long; what then is said."""
        from reins.bench.device_measure import OutOfTime, forget, within

        if seconds <= 0:
            self.omitted.append(what)
            return
        try:
            with within(seconds):
                act()
        except OutOfTime:
            self.said.append(f"{what}: stopped after {seconds:.0f} s")
            torch._dynamo.reset()
            self.made = 0
        except Exception as error:  # noqa: BLE001 - a case that fails is a result, and the others go on
            self.said.append(
                f"{what}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
        forget(self.model)

    def _plainly(self, case: Case) -> None:
        from reins.bench.device_measure import count, measure

        steered = case.steer(self.model)
        self.lines[case.name] = Line(case.name, count(self.sample, steered), measure(self.sample, steered))

    def _compiled(self, case: Case) -> None:
        from comfy_extras.nodes_torch_compile import TorchCompileModel
        from reins.bench.device_measure import measure
        from torch._dynamo.utils import counters

        if self.made >= GRAPHS:
            torch._dynamo.reset()
            self.made = 0
        before = counters["stats"]["unique_graphs"]
        model = TorchCompileModel.execute(case.steer(self.model), self.backend).result[0]
        self.sample(model, 2)
        self.sample(model, 2)  # what a second run makes anew
        cost = measure(self.sample, model)
        graphs = counters["stats"]["unique_graphs"] - before
        self.made += graphs
        self.lines[case.name] = self.lines[case.name]._replace(graphs=graphs, compiled=cost)

    def table(self) -> list[str]:
        from reins.bench.device_measure import ROUNDS, STEPS
        from reins.bench.result_tables import table

        (h, w), network = self.network.size, self.model.model.diffusion_model
        words = WORDS.format(
            h=h, w=w, cfg=self.network.cfg, dtype=str(network.dtype).removeprefix("torch."), steps=STEPS,
            rounds=ROUNDS, size=self.model.model_size() / 1e6,
        )  # fmt: skip
        plain = self.lines.get("plain")
        lines = table(self.network.name, words, HEAD, [_cells(line, plain) for line in self.lines.values()])
        said = [*self.said, *([f"Left out, for the time was up: {'; '.join(self.omitted)}"] if self.omitted else [])]
        return [*lines, *(f"- {reason}" for reason in said), *([""] if said else [])]


def _cells(line: Line, plain: Line | None) -> list[str]:
    compiled = ["", "", "", "", ""]
    if line.compiled is not None:
        compiled = [f"{line.graphs}", *_costs(line.compiled, None if plain is None else plain.compiled)]
    counts = [f"{line.counts.calls:.3g}", f"{line.counts.rows:.3g}"]
    return [line.name, *counts, *_costs(line.cost, None if plain is None else plain.cost), *compiled]


def _costs(cost: Cost, plain: Cost | None) -> list[str]:
    to_plain = "" if plain is None else f"{cost.milliseconds / plain.milliseconds:.2f}"
    peak = "" if cost.peak is None else f"{cost.peak / 1e6:.0f}"
    return [f"{cost.launches:.5g}", f"{cost.milliseconds:.2f}", to_plain, peak]


def benches(
    networks: Sequence[Network], seconds: float, backend: str, only: Sequence[str] = ()
) -> Iterator[Bench | str]:
    """Each network, measured in its share of what is left of the time; or why it is left out.

    Of the cases those in `only`, if it names some.
    """
    from reins.bench.device_cases import cases_of
    from reins.bench.device_measure import OutOfTime, forget, within
    from reins.bench.device_networks import make

    whole = Timer(seconds)
    for place, network in enumerate(networks):
        share = Timer(whole.left() / (len(networks) - place))
        try:
            with within(share.left()):
                model = make(network)
        except OutOfTime:
            yield f"{network.name}: left out, for its weights were not there in time"
            continue
        except (MemoryError, torch.cuda.OutOfMemoryError, AttributeError) as error:
            yield f"{network.name}: left out: {error}"
            continue
        bench = Bench(network, model, share, backend)
        bench.run([case for case in cases_of(network, model) if not only or case.name in only])
        yield bench
        del bench, model
        forget(None)


def page(networks: Sequence[Network], seconds: float, backend: str, only: Sequence[str] = ()) -> list[str]:
    """The lines of bench/DEVICE.md, printed as they come."""
    import comfy.model_management

    is_cuda = comfy.model_management.get_torch_device().type == "cuda"
    start = "\n".join(START).format(launches=KERNELS if is_cuda else OPERATORS, backend=backend)
    lines = [start, *where(), ""]
    print("\n".join(lines), flush=True)
    with torch.inference_mode():  # as the host runs its nodes
        for found in benches(networks, seconds, backend, only):
            more = [found, ""] if isinstance(found, str) else found.table()
            print("\n".join(more), flush=True)
            lines += more
    return lines


def where() -> list[str]:
    """What was measured on."""
    import comfy.ldm.modules.attention
    import comfy.model_management
    import comfyui_version

    device = comfy.model_management.get_torch_device()
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    made_for = next((f"{name} {version}" for name, version in versions.items() if version), "CPUs")
    attention = comfy.ldm.modules.attention.optimized_attention.__name__
    return [
        f"- Device: {name_of(device)}, driver {driver()}",
        f"- torch {torch.__version__}, made for {made_for}; {torch.get_num_threads()} threads on the CPU",
        f"- ComfyUI {comfyui_version.__version__}, its {attention}; Python {platform.python_version()}",
    ]


def name_of(device: torch.device) -> str:
    """The card's name and memory, or the processor's."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {platform.processor() or platform.machine()}"


def driver() -> str:
    """The version of NVIDIA's driver, or none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return found.stdout.split("\n")[0].strip() or "none"


def has_device() -> bool:
    """Whether there is more than a CPU."""
    others = (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps)
    return any(each is not None and each.is_available() for each in others)


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench --device", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny networks, to try it; prints alone")
    parser.add_argument("--write", action="store_true", help="writes bench/DEVICE.md, whatever was measured")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"the time for all of it (default: {MINUTES:g})")
    parser.add_argument(
        "--backend", default="inductor", help=f"of TorchCompileModel: inductor, cudagraphs, eager to try it, or {NONE}"
    )
    parser.add_argument("--networks", nargs="+", default=(), help="some of the tables, by their titles; prints alone")
    parser.add_argument("--cases", nargs="+", default=(), help="some of the rows, by their names; prints alone")
    return parser.parse_args(arguments)


def writes(options: argparse.Namespace, on_device: bool) -> bool:
    """Whether the page is written: not over that of a device by a trial, unless that was asked for."""
    return options.write or (on_device and not (options.small or options.cases or options.networks))


def main() -> None:
    started = time.monotonic()
    options = options_of()
    spec = importlib.util.spec_from_file_location("reins_bench_run", ROOT / "bench" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    on_device = has_device()
    run.enter(*(() if on_device else ("--cpu", "--use-pytorch-cross-attention")))  # the attention that devices use
    from reins.bench.device_networks import NETWORKS, SMALL

    seconds = 60 * options.minutes - RESERVE - (time.monotonic() - started)
    networks = [each for each in (SMALL if options.small else NETWORKS) if each.name in (options.networks or each.name)]
    lines = page(networks, seconds, options.backend, options.cases)
    if writes(options, on_device):
        DEVICE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
