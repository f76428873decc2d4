"""What an example costs (Prompt Diffusion), beside the host's ControlNet on the same UNet: stems, products, times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

import torch
from comfy.model_patcher import ModelPatcher
from reins.models.prompt_diffusion.network import Stems
from reins.tests.helpers import controlnext, prompt_diffusion, tiny_models
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from . import cases, result_tables
from .hints import CFG, Case, control_net, count, sample, timed

NOTE = (
    "The UNet and both control networks have SD1.5's widths and random weights. A ControlNet has one stem, which the "
    "host computes at every step; Prompt Diffusion has two, which are kept as long as the host keeps the hint. 'Stems "
    "at every step' is the same without that."
)
HEAD = (
    "nodes", "stems computed per run", "GMAC per step", "device reads per step", "ms", "to plain", "to ControlNet",
)  # fmt: skip


class Row(NamedTuple):
    name: str
    stems: int
    gmac: float
    reads: float
    milliseconds: float
    to_plain: float
    to_control_net: float


def make_cases(model: ModelPatcher, size: tuple[int, int]) -> dict[str, Case]:
    image = controlnext.picture(1, h=8 * size[0], w=8 * size[1])
    net = control_net().set_cond_hint(image.movedim(-1, 1), strength=1.0)
    shown = prompt_diffusion.example(prompt_diffusion.loaded(model, dtype=torch.float32))
    plain = {"positive": tiny_models.text(1), "negative": tiny_models.text(2)}
    return {
        "plain": Case(model, plain),
        "host ControlNet": Case(
            model, {"positive": tiny_models.text(1, control=net), "negative": tiny_models.text(2, control=net)}
        ),
        "Prompt Diffusion": Case(model, prompt_diffusion.apply(control_net=shown, image=image)),
        "Prompt Diffusion, stems at every step": Case(model, prompt_diffusion.apply(control_net=shown, image=image)),
    }


@contextmanager
def counted(name: str) -> Iterator[list[int]]:
    """How often the stems are computed; kept features are forgotten where the case says so."""
    found: list[int] = []
    features = Stems.features

    def note(stems: Stems, hint: Tensor) -> Tensor:
        found.append(len(hint))
        return features(stems, hint)

    forgetful = mock.patch.object(Stems, "forward", lambda stems, hint, *_: note(stems, hint))
    with mock.patch.object(Stems, "features", note), forgetful if "every step" in name else nullcontext():
        yield found


def measure(network: cases.Network) -> list[Row]:
    """All cases on a network; rounds go through all of them in turn."""
    made = make_cases(network.make(), network.size)
    seconds = timed(made, network, counted)
    plain_reads = count(lambda: sample(made["plain"], network), tiny_models.DeviceReads()).count
    return [_row(name, case, network, seconds, plain_reads) for name, case in made.items()]


def _row(
    name: str, case: Case, network: cases.Network, seconds: dict[str, list[float]], plain_reads: int
) -> Row:  # fmt: skip
    with counted(name) as stems:
        products = count(lambda: sample(case, network), FlopCounterMode(display=False)).get_total_flops() / 2
        computed = len(stems)
        reads = count(lambda: sample(case, network), tiny_models.DeviceReads()).count - plain_reads
    own = seconds[name]
    ratios = [
        statistics.median(a / b for a, b in zip(own, seconds[other], strict=True))
        for other in ("plain", "host ControlNet")
    ]
    steps = network.steps
    return Row(
        name, computed, products / steps / 1e9, reads / steps, 1000 * statistics.median(own) / steps, *ratios
    )  # fmt: skip


def table(network: cases.Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"Prompt Diffusion on {network.name}", network.size, f"cfg {CFG:g}")
    cells = [
        (
            row.name, f"{row.stems}", f"{row.gmac:.1f}", f"{row.reads:+.3g}", f"{row.milliseconds:.0f}",
            f"{row.to_plain:.2f}", f"{row.to_control_net:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)
