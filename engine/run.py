"""State of a sampling run: it is created when the run starts and cleared when it ends.

That holds after an error or an interrupt too. A Run is the state of one run, and a Step that of one call of the model
by the sampler. Layers and methods find both in the host's options.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeVar
from uuid import UUID

from comfy.patcher_extension import WrappersMP
from comfy.samplers import Sampler
from torch import Tensor

from .entries import KEY
from .sites import Depth

RUN, STEP = "reins_run", "reins_step"
Made = TypeVar("Made")


class ExtraChunk(NamedTuple):
    """A chunk that belongs to an extra prediction: the copy of a chunk of the host, under a uuid that only it has."""

    mark: UUID  # id of the extra prediction
    is_negative: bool  # whether it stands for the negative
    original: UUID  # uuid of the chunk that it is a copy of
    first_change: Depth | None  # where in the network it first differs from that; None if it may from the start


@dataclass(eq=False)
class Step:
    """One call of the model by the sampler: which chunks are extra predictions, and what they gave."""

    x: Tensor
    timestep: Tensor
    sigma: float
    cond: list | None = None
    uncond: list | None = None  # None if the negative takes no part
    guided: bool = False  # whether the negative takes part
    asked: tuple[list | None, ...] = ()  # lists of conds that the host was asked for with this step in its options
    extras: dict[UUID, ExtraChunk] = field(default_factory=dict)  # by the uuid of the chunk
    controlled: set[UUID] = field(default_factory=set)  # chunks that were given the same residuals as their originals
    predictions: dict[UUID, Tensor] = field(default_factory=dict)  # extra prediction -> denoised (b, c, h, w)
    plain: tuple[Tensor, ...] | None = None  # what the model predicted for the guider's conds, (b, c, h, w) each
    notes: dict[Hashable, Any] = field(default_factory=dict)  # what layers leave for each other

    def origin(self, chunk: UUID, label: int) -> tuple[UUID, int]:
        """Returns the uuid and the label of the conditioning that a chunk is a prediction for.

        Extra predictions for the same conditioning have the same origin. The label is part of it, for positive and
        negative may share a uuid. The label given for an extra chunk is not read.
        """
        extra = self.extras.get(chunk)
        if extra is None or extra.first_change is None:
            return chunk, label
        return extra.original, int(extra.is_negative)

    def first_changes(self) -> dict[UUID, Depth]:
        """Returns where extra chunks first differ from their originals, for those that do not from the start."""
        return {uuid: extra.first_change for uuid, extra in self.extras.items() if extra.first_change is not None}

    def __deepcopy__(self, memo: dict) -> Step:
        """Returns the step itself: a pack that copies the options of a call is still in the same step."""
        return self

    def for_another_call(self) -> Step:
        """Returns the step for another call of the model at the same place. It shares only the layers' notes."""
        return Step(x=self.x, timestep=self.timestep, sigma=self.sigma, notes=self.notes)


class Run:
    """The state of one sampling run: what the guider and the sampler gave, and what methods keep until it ends."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.names: Mapping[UUID, str] = {}  # what the guider calls the list of each cond
        self.sampler: Sampler | None = None
        self.sigmas: tuple[float, ...] = ()  # of the steps, the last one included
        self.start: tuple[Tensor, Tensor] | None = None  # noise and latent (b, c, h, w) that the run starts from
        self.seed = 0
        self.is_hooked = False  # whether weights may change within the run
        self.forget()

    def forget(self) -> None:
        """Clears all caches. A copy of a run needs this, so that the two share none."""
        self._made: dict[Hashable, Any] = {}
        self._sigma: tuple[Tensor, float] | None = None
        self._at: dict[type, tuple[Tensor | float | tuple, dict[Hashable, Any]]] = {}
        self._closers: list[Callable[[], None]] = []
        self.held: dict[Hashable, Any] = {}  # what methods use over several steps (hold.py)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what `make()` gave for `key` in this run. It is called at the first request only."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def once_at(self, now: Tensor | float | tuple, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what `make()` gave for `key` in this step, or in this call of the network.

        `now` tells which step it is: the sampler's own tensor of noise levels (b,), compared by identity, or sigma as a
        number. The tuple of the chunks of a call, compared by identity, tells which call it is. Layers that give one of
        these and layers that give another have separate caches.
        """
        last, made = self._at.get(type(now), (None, {}))
        if last is not now and not (isinstance(now, float) and last == now):
            made = {}
            self._at[type(now)] = now, made
        if key not in made:
            made[key] = make()
        return made[key]

    def sigma(self, sigmas: Tensor) -> float:
        """Returns the noise level of the sampler's tensor (b,). The device is read once, however many ask for it."""
        if self._sigma is None or self._sigma[0] is not sigmas:
            self._sigma = sigmas, float(sigmas[0])
        return self._sigma[1]

    def position(self, sigma: float) -> int:
        """Returns the number of the step that a noise level belongs to: the last that starts at this level or above."""
        return max(sum(level >= sigma for level in self.sigmas[:-1]) - 1, 0)

    def is_from_noise(self, largest: float, near: float) -> bool:
        """Returns whether the run starts from noise alone: at the greatest noise level of the model.

        A second pass, a refiner and image to image start lower. Some schedules begin a little lower with an empty
        latent, not below `near`. The device is read once in a run.
        """
        if not self.sigmas or self.sigmas[0] >= largest * (1 - 1e-5):
            return True
        return self.sigmas[0] >= near and self.once(Run.is_from_noise, lambda: _is_noise(self.start))

    def at_end(self, close: Callable[[], None]) -> None:
        """Notes a function to be called when the run is over, whatever ends it."""
        self._closers.append(close)

    def clear(self) -> None:
        """Calls the functions noted for the end, and clears the caches and the step."""
        while self._closers:
            self._closers.pop()()
        self.step = self._sigma = self.start = None
        self._made.clear()
        self._at.clear()
        self.held.clear()

    def __deepcopy__(self, memo: dict) -> Run:
        """Returns a run with the same seed and noise levels, and with empty caches: tensors are never copied.

        Other packs copy the options of a call. What a method draws or looks up there must stay what it was.
        """
        copied = Run()
        copied.seed, copied.sigmas, copied.is_hooked = self.seed, self.sigmas, self.is_hooked
        copied.names, copied.sampler = dict(self.names), self.sampler
        return copied


class TracedRun(Run):
    """A run as layers see it if torch.compile follows them: nothing is kept, for the graph is what is kept.

    torch would make another graph for each thing that a run keeps.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.seed, self.sigmas, self.is_hooked = run.seed, run.sigmas, run.is_hooked
        self.names, self.sampler = run.names, run.sampler

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what `make()` gives now."""
        return make()

    def once_at(self, now: Tensor | float, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what `make()` gives now. `now`, a number or a tensor (b,), is not read."""
        return make()


def _is_noise(start: tuple[Any, Any] | None) -> bool:
    if start is None or not all(isinstance(part, Tensor) for part in start):
        return False
    noise, latent = start
    return bool(noise.any()) and not latent.any()


def run_of(model_options: dict[str, Any]) -> Run:
    """Returns the run that these options belong to. `start_run` puts it there.

    Code without a guider may prepare options for one call of the host's sampling function. It gets a run that lives in
    those options. A model's own options, handed to that function unprepared, belong to no run, and nothing is kept.
    """
    options = model_options.get("transformer_options", {})
    if RUN not in options and KEY in options.get("wrappers", {}).get(WrappersMP.OUTER_SAMPLE, {}):
        options[RUN] = Run()
    return run_in(options)


def run_in(transformer_options: Mapping[str, Any]) -> Run:
    """Returns the run that a call of the network belongs to. Without one it is a new run that nobody else sees."""
    return transformer_options.get(RUN) or Run()


def sigma_in(transformer_options: Mapping[str, Any]) -> float:
    """Returns the noise level of a call of the network. It is read from the device if no step has noted it."""
    step: Step | None = transformer_options.get(STEP)
    if step is not None:
        return step.sigma
    sigmas = transformer_options.get("sigmas")
    return run_in(transformer_options).sigma(not_told("sigmas") if sigmas is None else sigmas)


def not_told(key: str) -> NoReturn:
    """Raises RuntimeError for a key of the host's options that is not there, because another pack made the options."""
    raise RuntimeError(
        f"A layer should be told '{key}' by what calls it, but another pack calls the model or its blocks in the "
        f"host's place and leaves it out. Remove that pack from the model."
    )


def options_in_run(options: Mapping[str, Any], given: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Returns transformer options of another model with `run`, for use in the sampling loop of the `given` ones."""
    kept = {name: given[name] for name in ("sample_sigmas",) if name in given}
    return {**options, **kept, RUN: run}


def start_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: gives the guider's options a run, and clears it whatever happens."""
    guider = executor.class_obj
    options = guider.model_options
    if RUN in options["transformer_options"]:
        return executor(*args, **kwargs)
    run = Run()
    run.start, (run.sampler, sigmas) = args[:2], args[2:4]
    run.sigmas = tuple(sigmas.tolist())
    run.seed = (args[7] if len(args) > 7 else kwargs.get("seed")) or 0
    conds = [(name, cond) for name, of_list in getattr(guider, "conds", {}).items() for cond in of_list]
    run.names = {cond["uuid"]: name for name, cond in conds if "uuid" in cond}
    run.is_hooked = any(cond.get("hooks") is not None for _, cond in conds)
    guider.model_options = {**options, "transformer_options": {**options["transformer_options"], RUN: run}}
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = options
        run.clear()
