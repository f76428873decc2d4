"""What guidance costs on diffusion transformers: calls, rows of the network and of its blocks, and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import comfy_extras.nodes_pag
import comfy_extras.nodes_slg
from comfy.model_patcher import ModelPatcher
from reins.engine.dit.families import blocks_of, family_of
from reins.nodes.guidance.perturbed_attention import SEE_TEXT, THEMSELVES, PerturbedAttentionGuidance
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
from reins.tests.helpers import tiny_transformers

from . import result_tables

HEAD = ("nodes", "calls per step", "rows of a block", "ms", "to plain", "to host SLG")
NOTE = (
    "Random weights; texts of 77 tokens. 'rows of a block' is the mean over all blocks: 2 for CFG alone. ComfyUI's PAG "
    "node changes nothing on a transformer. 'unshared' computes all blocks for each prediction."
)
CFG, TOKENS = 5.0, 77
Steer = Callable[[ModelPatcher], ModelPatcher]


class Network(NamedTuple):
    """A network of the host, and how long it is measured. `skipped` are the blocks that SLG skips on it."""

    name: str
    family: str
    changes: dict
    size: tuple[int, int]
    skipped: str
    host_skipped: tuple[str, str]  # of double and of single blocks
    steps: int = 2
    rounds: int = 5


NETWORKS = [
    Network(
        "the layout of SD3.5 Medium, 512 wide", "sd35m",
        {"depth": 8, "num_blocks": 24, "x_block_self_attn_layers": list(range(13)), "pos_embed_max_size": 64,
         "num_patches": 4096, "context_embedder_config": {
             "target": "torch.nn.Linear", "params": {"in_features": tiny_transformers.WIDTH, "out_features": 512}}},
        (32, 32), "b7-9", ("7, 8, 9", ""),
    ),
    Network(
        "the layout of Flux, a third of its blocks, 256 wide", "flux",
        {"depth": 6, "depth_single_blocks": 12, "hidden_size": 256, "num_heads": 4, "axes_dim": [16, 24, 24]},
        (32, 32), "s1-3", ("", "1, 2, 3"),
    ),
]  # fmt: skip


class Row(NamedTuple):
    name: str
    calls: float
    block_rows: float
    milliseconds: float
    to_plain: float
    to_host: float


def pag(model: ModelPatcher, image_tokens: str = SEE_TEXT, *, share: bool = True) -> ModelPatcher:
    return PerturbedAttentionGuidance.execute(
        model, 3.0, 0.0, 1.0, "auto", share_layers=share, image_tokens=image_tokens
    ).result[0]


def cases_of(network: Network) -> dict[str, Steer]:
    double, single = network.host_skipped

    def host_pag(model: ModelPatcher) -> ModelPatcher:
        return comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]

    def host_slg(model: ModelPatcher) -> ModelPatcher:
        node = comfy_extras.nodes_slg.SkipLayerGuidanceDiT
        return node.execute(model, 3.0, 0.0, 1.0, double, single, 0.0).result[0]

    def slg(model: ModelPatcher, *, share: bool = True) -> ModelPatcher:
        return SkipLayerGuidance.execute(model, 2.8, 0.0, 1.0, network.skipped, share_layers=share).result[0]

    return {
        "plain": lambda model: model,
        "host PAG, without effect": host_pag,
        "host SLG": host_slg,
        "PAG, see text": pag,
        "PAG, see text, unshared": lambda model: pag(model, share=False),
        "PAG, themselves": lambda model: pag(model, THEMSELVES),
        "SEG": lambda model: SmoothedEnergyGuidance.execute(model, 3.0, -1.0, 0.0, 1.0, "auto").result[0],
        "SLG": slg,
        "SLG, unshared": lambda model: slg(model, share=False),
        "PAG + SLG": lambda model: slg(pag(model)),
    }


@contextmanager
def counted(model: ModelPatcher) -> Iterator[tuple[list[int], list[int]]]:
    """Calls of the network, and the rows of each call of a block."""
    network = model.model.diffusion_model
    calls: list[int] = []
    rows: list[int] = []

    def note(_: object, inputs: tuple, named: dict) -> None:
        tensors = [value for value in (*inputs, *named.values()) if getattr(value, "ndim", 0) > 2]
        rows.append(len(tensors[0]))

    hooks = [network.register_forward_pre_hook(lambda *_: calls.append(1))]
    hooks += [
        block.register_forward_pre_hook(note, with_kwargs=True) for _, block in blocks_of(network, family_of(network))
    ]
    try:
        yield calls, rows
    finally:
        for hook in hooks:
            hook.remove()


def sample_on(network: Network, model: ModelPatcher) -> None:
    texts = [tiny_transformers.text(seed, TOKENS, network.family) for seed in (1, 2)]
    h, w = network.size
    tiny_transformers.sample(
        network.family, model, CFG, network.steps, h, w, positive=texts[0], negative=texts[1]
    )  # fmt: skip


def measure(network: Network) -> list[Row]:
    """All cases on a network. Rounds go through all of them in turn."""
    model = tiny_transformers.make(network.family, **network.changes)
    blocks = len(list(blocks_of(model.model.diffusion_model, family_of(model.model.diffusion_model))))
    steered = {name: steer(model) for name, steer in cases_of(network).items()}
    counts = {}
    for name, case in steered.items():
        with counted(model) as (calls, rows):
            sample_on(network, case)
        counts[name] = len(calls) / network.steps, sum(rows) / blocks / network.steps
    seconds: dict[str, list[float]] = {name: [] for name in steered}
    for _ in range(network.rounds):
        for name, case in steered.items():
            start = time.perf_counter()
            sample_on(network, case)
            seconds[name].append(time.perf_counter() - start)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))

    return [
        Row(name, *counts[name], 1000 * statistics.median(seconds[name]) / network.steps, ratio(name, "plain"),
            ratio(name, "host SLG"))
        for name in steered
    ]  # fmt: skip


def table(network: Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"Diffusion transformers: {network.name}", network.size, f"cfg {CFG:g}")
    cells = [
        (
            row.name, f"{row.calls:.3g}", f"{row.block_rows:.2f}", f"{row.milliseconds:.0f}", f"{row.to_plain:.2f}",
            f"{row.to_host:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)
