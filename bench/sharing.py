"""What layers and residuals that predictions share save: products of matrices, rows of the ControlNet, times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import comfy.controlnet
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import controlnext, tiny_models
from reins.tests.helpers.methods import pag, seg, tpg
from torch.utils.flop_counter import FlopCounterMode

from . import cases, result_tables
from .hints import CFG, Case, control_net, count, sample, timed

HEAD = (
    "nodes", "rows of the ControlNet per step", "GMAC per step", "the added evaluation", "ms", "to plain",
    "to unshared",
)  # fmt: skip
NOTE = (
    "The networks have random weights, and SD1.5's widths unless a width is named. Products (of convolutions and "
    "matrices) are exact counts; the added evaluation is what a step has beyond a plain one, in rows of a plain UNet. "
    "A ControlNet 'of another pack' is the same under a class that is not the host's, which is asked for every chunk."
)


class Row(NamedTuple):
    name: str
    control_rows: float
    gmac: float
    added: float
    milliseconds: float
    to_plain: float
    to_unshared: float | None


class Foreign(comfy.controlnet.ControlNet):
    """A ControlNet whose code is not the host's own."""

    def get_control(self, *args: object) -> object:
        return super().get_control(*args)


def make_cases(model: ModelPatcher, size: tuple[int, int]) -> dict[str, Case]:
    hint = controlnext.picture(1, h=8 * size[0], w=8 * size[1]).movedim(-1, 1)
    known = control_net()
    foreign = Foreign(known.control_model, load_device=tiny_models.CPU)
    texts = {"positive": tiny_models.text(1), "negative": tiny_models.text(2)}

    def controlled(net: comfy.controlnet.ControlNet) -> dict[str, list]:
        net.set_cond_hint(hint, strength=1.0)
        return {"positive": tiny_models.text(1, control=net), "negative": tiny_models.text(2, control=net)}

    return {
        **guided_cases(model, texts),
        "ControlNet": Case(model, controlled(known)),
        "PAG on m0 + ControlNet of another pack, unshared": Case(pag(model, share=False), controlled(foreign)),
        "PAG on m0 + ControlNet": Case(pag(model), controlled(known)),
    }


def guided_cases(model: ModelPatcher, texts: dict[str, list]) -> dict[str, Case]:
    """The cases without a ControlNet."""
    return {
        "plain": Case(model, texts),
        "PAG on m0, unshared": Case(pag(model, share=False), texts),
        "PAG on m0": Case(pag(model), texts),
        "PAG on u0, unshared": Case(pag(model, layers="u0", share=False), texts),
        "PAG on u0": Case(pag(model, layers="u0"), texts),
        "TPG on m0": Case(tpg(model), texts),
        "PAG on m0 + SEG on u0, unshared": Case(seg(pag(model, share=False), layers="u0", share=False), texts),
        "PAG on m0 + SEG on u0": Case(seg(pag(model), layers="u0"), texts),
    }


@contextmanager
def rows_of_control(case: Case) -> Iterator[list[int]]:
    """Rows of every call of the case's ControlNet."""
    rows: list[int] = []
    net = case.conds["positive"][0][1].get("control")
    if net is None:
        yield rows
        return
    hook = net.control_model.register_forward_pre_hook(
        lambda _, inputs, named: rows.append(len(named["x"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


def measure(network: cases.Network) -> list[Row]:
    """All cases on a network; rounds go through all of them in turn."""
    return _measured(make_cases(network.make(), network.size), network)


def measure_small(network: cases.Network) -> list[Row]:
    """The cases without a ControlNet on a network of any width."""
    texts = {"positive": tiny_models.text(1), "negative": tiny_models.text(2)}
    return _measured(guided_cases(network.make(), texts), network)


def _measured(made: dict[str, Case], network: cases.Network) -> list[Row]:
    seconds = timed(made, network, lambda name: nullcontext())
    products = {name: _products(case, network) for name, case in made.items()}
    return [_row(name, case, network, seconds, products) for name, case in made.items()]


def _products(case: Case, network: cases.Network) -> float:
    return count(lambda: sample(case, network), FlopCounterMode(display=False)).get_total_flops() / 2 / network.steps


def _row(
    name: str, case: Case, network: cases.Network, seconds: dict[str, list[float]], products: dict[str, float]
) -> Row:  # fmt: skip
    with rows_of_control(case) as rows:
        sample(case, network)
    base = "ControlNet" if "ControlNet" in name else "plain"
    unshared = next((other for other in seconds if other != name and other.startswith(name) and "," in other), None)
    own = seconds[name]

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(own, seconds[other], strict=True))

    added = 2 * (products[name] - products[base]) / products["plain"]
    return Row(
        name, sum(rows) / network.steps, products[name] / 1e9, added,
        1000 * statistics.median(own) / network.steps, ratio("plain"), None if unshared is None else ratio(unshared),
    )  # fmt: skip


def table(network: cases.Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"Shared layers and residuals on {network.name}", network.size, f"cfg {CFG:g}")
    cells = [
        (
            row.name, f"{row.control_rows:.3g}", f"{row.gmac:.1f}", f"{row.added:.2f}", f"{row.milliseconds:.0f}",
            f"{row.to_plain:.2f}", "" if row.to_unshared is None else f"{row.to_unshared:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)
