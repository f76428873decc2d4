"""What an IP-Adapter costs: matrix products, attentions and bytes, counted; times as ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import comfy.ldm.modules.attention
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from reins.engine.run import RUN
from reins.engine.unet import find_transformers, unet_of
from reins.models.ip_adapter.network import ImageLayers
from reins.nodes.ip_adapter import attention as image_attention
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.load import in_file_order
from reins.tests.helpers import ip_adapter, tiny_models

from . import result_tables
from .cases import Network

CFG, TOKENS = 7.0, 16
HEAD = (
    "nodes", "matrix products per run", "per step", "attentions of images per step", "device reads per step",
    "weights on the device, MB", "k and v kept, MB", "ms", "to plain",
)  # fmt: skip

NOTE = (
    "Text is 16 numbers wide here, so the matrices are small and the times of all ways alike; at SD1.5's 768 they are "
    "37 MiB. The last row is how adapters are usually written."
)


class Row(NamedTuple):
    """A way of prompting with images; bytes are those held in the middle of a run."""

    name: str
    products: int
    attentions: int
    reads: float
    weights: int
    kept: int
    milliseconds: float
    to_plain: float


class Way(NamedTuple):
    steer: Callable[[ModelPatcher, ip_adapter.IPAdapter, ip_adapter.ImageTokens], ModelPatcher]
    weights_stay: bool = False  # on the device for the whole run, outside the host's books


def ours(
    model: ModelPatcher, made: ip_adapter.IPAdapter, tokens: ip_adapter.ImageTokens, **settings: object
) -> ModelPatcher:
    return IPAdapterApply.execute(model, made, tokens, **settings).result[0]


def every_step(model: ModelPatcher, made: ip_adapter.IPAdapter, tokens: ip_adapter.ImageTokens) -> ModelPatcher:
    """As adapters are usually written: in the host's slot, k and v anew in each layer of each step, for each row."""
    model = model.clone()
    layers = made.layers.model
    for number, one in enumerate(in_file_order(find_transformers(unet_of(model)))):

        def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any], number: int = number):  # noqa: ANN202
            heads, labels = options["n_heads"], options["cond_or_uncond"]
            attention = comfy.ldm.modules.attention.optimized_attention
            cond, uncond = (layers.keys_and_values(number, part) for part in (tokens.cond, tokens.uncond))
            rows = [uncond if label == 1 else cond for label in labels]
            k_image, v_image = (
                torch.cat([pair[i].repeat(len(q) // len(labels), 1, 1) for pair in rows]).to(q) for i in (0, 1)
            )
            float(options["sigmas"][0])  # the range is asked for in every layer
            return attention(q, k, v, heads) + image_attention.attention_pytorch(q, k_image, v_image, heads)

        model.set_model_attn2_replace(both, *one.site("attn2")[1:])
    return model


MASK = torch.ones(1, 64, 64)
WAYS = {
    "plain": Way(lambda model, made, tokens: model),
    "IP-Adapter": Way(ours),
    "IP-Adapter with mask": Way(lambda model, made, tokens: ours(model, made, tokens, mask=MASK)),
    "IP-Adapter, 0 to 50 %": Way(lambda model, made, tokens: ours(model, made, tokens, end_percent=0.5)),
    "two IP-Adapters": Way(lambda model, made, tokens: ours(ours(model, made, tokens), made, tokens)),
    "k and v at every step": Way(every_step, weights_stay=True),
}


@contextmanager
def counted(model: ModelPatcher) -> Iterator[Counter]:
    """Counts what happens inside, and notes what a run holds at its last call of the network."""
    counts: Counter = Counter()
    project, attend = ImageLayers.keys_and_values, image_attention.attention_pytorch

    def projected(self: ImageLayers, *arguments: Any) -> Any:
        counts["products"] += 2
        return project(self, *arguments)

    def attended(*arguments: Any, **options: Any) -> torch.Tensor:
        counts["attentions"] += 1
        return attend(*arguments, **options)

    def note(executor: Any, *arguments: Any, **options: Any) -> Any:
        out = executor(*arguments, **options)
        run = arguments[5].get(RUN)
        counts["kept"] = sum(_bytes(made) for made in run._made.values()) if run else 0
        return out

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", note)
    with (
        mock.patch.object(ImageLayers, "keys_and_values", projected),
        mock.patch.object(image_attention, "attention_pytorch", attended),
    ):
        yield counts


def measure(network: Network) -> list[Row]:
    """All ways on a network; rounds go through all of them in turn."""
    model = network.make()
    made = ip_adapter.adapter(model)
    tokens = ip_adapter.tokens(made, count=TOKENS)
    steered = {name: way.steer(model, made, tokens) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(network.rounds):
        for name in WAYS:
            start = time.perf_counter()
            _sample(steered[name], network)
            seconds[name].append(time.perf_counter() - start)
    plain_reads = _reads(steered["plain"], network)
    rows = []
    for name, way in WAYS.items():
        noted = steered[name].clone()
        with counted(noted) as counts:
            _sample(noted, network)
        loaded = {id(found.model) for found in comfy.model_management.current_loaded_models}
        stays = way.weights_stay or id(made.layers) in loaded
        to_plain = statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        rows.append(
            Row(
                name, counts["products"], counts["attentions"] / network.steps,
                (_reads(steered[name], network) - plain_reads) / network.steps,
                made.layers.model_size() if stays else 0, counts["kept"],
                1000 * statistics.median(seconds[name]) / network.steps, to_plain,
            )
        )  # fmt: skip
    return rows


def table(network: Network, rows: list[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"IP-Adapter on {network.name}", network.size, f"cfg {CFG:g}, {TOKENS} tokens")
    cells = [
        (
            row.name, f"{row.products}", f"{row.products / network.steps:.3g}", f"{row.attentions:.3g}",
            f"{row.reads:+.3g}", f"{row.weights / 1e6:.2f}", f"{row.kept / 1e6:.2f}", f"{row.milliseconds:.1f}",
            f"{row.to_plain:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds, NOTE), HEAD, cells)


def _sample(model: ModelPatcher, network: Network) -> None:
    tiny_models.sample(model, network.size, cfg=CFG, steps=network.steps)


def _reads(model: ModelPatcher, network: Network) -> int:
    with tiny_models.DeviceReads() as reads:
        _sample(model, network)
    return reads.count


def _bytes(made: object) -> int:
    parts = made if isinstance(made, tuple) else (made,)
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
