"""Methods in a network that the host's node TorchCompileModel compiles, beside an older build: graphs and pictures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import comfy_extras.nodes_torch_compile
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import tiny_models
from torch import Tensor

from . import result_tables
from .against import TITLE
from .builds import Build, shelf
from .by_id import TOKENS, ByBuild, Drawn, nag, pag, pladis, simple

STEPS, CFG, SIZE, RIGHT = 4, 5.0, (16, 16), 1e-4
HEAD = ("nodes", "build", "graphs", "first picture", "second picture", "plain after it")
NOTE = (
    "Graphs that are made by two runs of {steps} steps and a plain run after them, in a network that holds what a "
    "plain run made (one graph). Graphs run as they are, without code made for them. A picture is right if it is "
    "within {right:g} of that without compiling. The older build is the commit {older}."
)


HEAD_ALONE = ("nodes", "build", "graphs", "picture")
NOTE_ALONE = (
    "Graphs that are made by a first run of {steps} steps in a network that nothing was compiled for. Graphs run as "
    "they are, without code made for them. A picture is right if it is within {right:g} of that without compiling. The "
    "older build is the commit {older}."
)


class Case(NamedTuple):
    """A method of a build: the plain model, and the same one steered by it."""

    name: str
    build: str
    model: ModelPatcher
    steered: ModelPatcher


class Row(NamedTuple):
    name: str
    build: str
    graphs: int
    pictures: Sequence[str]


class Graphs:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def methods_of(drawn: Drawn) -> Mapping[str, ByBuild]:
    return {
        "PAG": pag,
        "TPG": simple("TokenPerturbationGuidance", layers="m0"),
        "APG": simple("AdaptiveProjectedGuidance"),
        "Guidance Interval": simple("GuidanceInterval", start_percent=0.3, end_percent=0.7),
        "Guidance Rescale": simple("GuidanceRescale"),
        "NAG": nag,
        "PLADIS": pladis,
        "IP-Adapter": drawn.ip_adapter,
        "ControlNeXt": drawn.controlnext,
        "UniCon": drawn.beside,
    }


def compiled(model: ModelPatcher, graphs: Graphs) -> ModelPatcher:
    """The model behind the host's node."""
    return comfy_extras.nodes_torch_compile.TorchCompileModel.execute(model, graphs).result[0]


def sample(model: ModelPatcher) -> Tensor:
    texts = {"positive": tiny_models.text(1, TOKENS), "negative": tiny_models.text(2, TOKENS)}
    return tiny_models.sample(model, SIZE, cfg=CFG, steps=STEPS, **texts)


def measure(builds: Sequence[Build], after_plain: bool = True) -> list[Row]:
    """Every method of each build, in a network that is compiled for nothing else, or for the plain model before."""
    logging.disable(logging.WARNING)  # torch and the pack say much here
    try:
        with shelf() as files, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = tiny_models.sd15()
            drawn = Drawn(files, model, SIZE)
            plain = sample(model)
            row = partial(_after_plain, plain=plain) if after_plain else _alone
            return [
                row(Case(name, build.name, model, method(build, model)))
                for name, method in methods_of(drawn).items()
                for build in builds
            ]
    finally:
        logging.disable(logging.NOTSET)
        torch._dynamo.reset()


def _after_plain(case: Case, plain: Tensor) -> Row:
    expected, graphs = sample(case.steered), Graphs()
    torch._dynamo.reset()
    sample(compiled(case.model, graphs))
    before = graphs.count
    cases = ((case.steered, expected), (case.steered, expected), (case.model, plain))
    pictures = [_verdict(lambda some=some: sample(compiled(some, graphs)), right) for some, right in cases]
    return Row(case.name, case.build, graphs.count - before, pictures)


def _alone(case: Case) -> Row:
    expected, graphs = sample(case.steered), Graphs()
    torch._dynamo.reset()
    picture = _verdict(lambda: sample(compiled(case.steered, graphs)), expected)
    return Row(case.name, case.build, graphs.count, [picture])


def _verdict(run: Callable[[], Tensor], right: Tensor) -> str:
    try:
        found = run()
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the result
        return type(error).__name__
    off = float((found - right).abs().max() / right.abs().max())
    return "right" if off <= RIGHT else f"wrong by {off:.2g}"


def table(builds: Sequence[Build], rows: Sequence[Row], after_plain: bool = True) -> list[str]:
    note, head = (NOTE, HEAD) if after_plain else (NOTE_ALONE, HEAD_ALONE)
    words = note.format(steps=STEPS, right=RIGHT, older=builds[-1].name)
    order = "after a plain run" if after_plain else "alone"
    title = result_tables.on_a_latent(f"{TITLE}torch.compile on tiny, {order}", SIZE, f"cfg {CFG:g}")
    cells = [(row.name, row.build, f"{row.graphs}", *row.pictures) for row in rows]
    return result_tables.table(title, words, head, cells)
