"""The training loop of all tasks: optimisers, average of the weights, resuming, progress and curve.

A run depends on nothing but its settings: the pictures and the noise of step n come from a generator seeded with n. So
a run that was stopped and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .curve import Curve, draw_curve
from .muon import Muon

SAVE_SECONDS = 120
ADAM_PARTS = (
    "input_blocks.0.", ".out.2.", "words.", "embedding", "lora_", ".to_out.",
    "_embedder.", "adaLN_modulation.", "final_layer.", "norm_ip.", ".latents",
)  # fmt: skip
SEED_STRIDE = 1_000_003  # a prime, so that steps of different seeds draw different pictures


@dataclass(frozen=True)
class Plan:
    """The settings of a run. The rate rises over `warm_up` steps, rests, and falls to zero over the last `cool_down`.

    Matrices learn by Muon at `matrix_rate`, everything else by AdamW at `rate`. At a matrix rate of 0 all use AdamW.
    """

    steps: int
    batch: int
    rate: float = 1e-3
    matrix_rate: float = 0.01
    warm_up: int = 100
    cool_down: float = 0.85  # share of all steps
    average: float = 0.998  # of the weights, per step
    clip: float = 1.0
    seed: int = 0

    def rate_factor(self, step: int) -> float:
        """The factor on the rates at a step."""
        left = (self.steps - step) / max(1.0, self.cool_down * self.steps)
        return min(1.0, (step + 1) / self.warm_up, left)


class Task(Protocol):
    """What is trained. `what` is the first sentence of its card."""

    name: str
    what: str
    file: Path
    plan: Plan

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters that learn, under the names of the file. The rest of the model is frozen."""

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        """The loss of one batch. All pictures and all noise come from the generator, which is on the CPU."""


class Interrupted(Exception):
    """The run was stopped. The same command goes on from here."""


@dataclass
class State:
    """The state of a run, which is all that resuming it needs."""

    step: int
    seconds: float
    average: dict[str, Tensor]
    curve: Curve


def train(task: Task, plan: Plan, folder: Path) -> State:
    """Runs or resumes a task. Returns the last state, whose `average` is the result. `folder` keeps state and curve.

    Raises Interrupted if the run is stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(task.parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)  # newer hosts build their networks frozen
    optimisers = make_optimisers(parameters, plan)
    path = folder / "state.pt"
    state = read_state(path, parameters, optimisers, plan) if path.exists() else fresh_state(parameters)
    last_saved = time.monotonic()
    bar = tqdm(total=plan.steps, initial=state.step, desc=task.name, unit="step", smoothing=0.05, dynamic_ncols=True)
    with bar, stop_politely() as stopped:
        while state.step < plan.steps:
            start = time.monotonic()
            loss = one_step(task, plan, parameters, optimisers, state)
            state.seconds += time.monotonic() - start
            state.curve.add(state.step, loss)
            bar.update()
            bar.set_postfix(loss=f"{state.curve.latest:.4f}")
            finished = state.step == plan.steps
            if finished or stopped() or time.monotonic() - last_saved > SAVE_SECONDS:
                write_state(path, state, parameters, optimisers, plan)
                draw_curve(state.curve, task.name, folder / "curve.png")
                last_saved = time.monotonic()
            if stopped() and not finished:
                raise Interrupted(f"stopped after step {state.step} of {plan.steps}; the same command goes on")
    return state


def one_step(
    task: Task, plan: Plan, parameters: dict[str, nn.Parameter], optimisers: list[torch.optim.Optimizer], state: State
) -> float:
    """Trains for one step and changes `state`. Returns the loss."""
    generator = torch.Generator().manual_seed(plan.seed * SEED_STRIDE + state.step)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["full_rate"] * plan.rate_factor(state.step)
    loss = task.loss(plan.batch, generator)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters.values(), plan.clip)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    # at first the average forgets faster, so that the first weights have no part in it
    weight = 1 - min(plan.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.values()), list(parameters.values()), weight)
    state.step += 1
    return loss.item()


def make_optimisers(parameters: Mapping[str, nn.Parameter], plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels, AdamW for gains, biases, tables, thin adapters and both ends of the network."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in parameters.items():
        by_muon = plan.matrix_rate > 0 and parameter.ndim > 1 and not any(part in name for part in ADAM_PARTS)
        groups[by_muon].append(parameter)
    adam = {"params": groups[False], "full_rate": plan.rate}
    optimisers: list[torch.optim.Optimizer] = []
    if groups[True]:
        optimisers.append(Muon([{"params": groups[True], "full_rate": plan.matrix_rate}]))
    if groups[False]:
        optimisers.append(torch.optim.AdamW([adam], lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.0))
    return optimisers


def fresh_state(parameters: Mapping[str, nn.Parameter]) -> State:
    """The state before the first step."""
    return State(0, 0.0, {name: value.detach().clone() for name, value in parameters.items()}, Curve())


def read_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimisers: list[torch.optim.Optimizer], plan: Plan
) -> State:
    """The state in a file. Parameters and optimisers are set to it.

    Raises ValueError if the file belongs to a run with other settings.
    """
    saved = torch.load(path, weights_only=True, map_location=next(iter(parameters.values())).device)
    # only the length may change: a run may be made longer before its rate begins to fall
    if {**saved["plan"], "steps": plan.steps} != asdict(plan):
        raise ValueError(
            f"{path} belongs to a run with other settings: {saved['plan']}. Repeat them, or add --fresh to begin anew."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved["parameters"][name])
    for optimiser, content in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(content)
    return State(saved["step"], saved["seconds"], saved["average"], Curve(*saved["curve"]))


def write_state(
    path: Path,
    state: State,
    parameters: Mapping[str, nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
    plan: Plan,
) -> None:
    """Writes the state to a file, which appears whole or not at all."""
    content = {
        "plan": asdict(plan),
        "step": state.step,
        "seconds": state.seconds,
        "average": state.average,
        "parameters": {name: value.detach() for name, value in parameters.items()},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "curve": (state.curve.steps, state.curve.losses, state.curve.latest),
    }
    torch.save(content, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@contextmanager
def stop_politely() -> Iterator:
    """Lets Ctrl-C and SIGTERM wait for the end of a step. Gives a function that tells whether one came."""
    asked = []
    old = {kind: signal.signal(kind, lambda *_: asked.append(True)) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for kind, handler in old.items():
            signal.signal(kind, handler)
