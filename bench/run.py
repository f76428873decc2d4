"""python3 dev.py bench [--quick]: prints the tables and writes them to bench/RESULTS.md."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from reins.bench.cases import Network
    from reins.bench.measure import Row

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| cfg | nodes | UNet calls | rows | device reads | ms | to plain | to | |"


def enter() -> None:
    """The pack under its test name, beside the host that COMFYUI_PATH names."""
    spec = importlib.util.spec_from_file_location("reins_tests_conftest", ROOT / "tests" / "conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def table(network: Network, rows: list[Row], what: str = "") -> list[str]:
    h, w = network.size
    lines = [
        f"## {what}{network.name}, latent {h}x{w}, per sampler step",
        "",
        f"{network.steps} steps, {network.rounds} rounds.",
        "",
        HEAD,
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row.case
        against = (
            ("", "") if case.name == "plain" or case.against == "plain" else (f"{row.to_against:.2f}", case.against)
        )
        lines.append(
            f"| {case.cfg:g} | {case.name} | {row.calls:.3g} | {row.rows:.3g} | {row.reads:+.3g} "
            f"| {row.milliseconds:.1f} | {row.to_plain:.2f} | {against[0]} | {against[1]} |"
        )
    return [*lines, ""]


def preface(version: str) -> list[str]:
    return [
        "# What the nodes cost", "",
        "Written by `python3 dev.py bench`. UNet calls and rows are exact counts. Device reads are numbers read from a "
        "tensor beyond those of plain sampling, on a GPU each waits for the device: one per step, and some once per "
        "run to turn percents into sigmas. Times compare cases of one run: every round goes through all cases, ratios "
        "are medians over rounds; 'to' compares with the host's own nodes. The allocator keeps its memory, because "
        "page faults would drown the rest. A CPU pays for rows; a GPU with small batches pays more for calls. Rows of "
        "other packs are measured with `--packs FOLDER` if their checkouts lie there; none is part of this pack.",
        "",
        f"ComfyUI {version}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads on the "
        "CPU, float32, Euler, one picture.", "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny network only, few rounds, nothing written")
    parser.add_argument("--packs", type=Path, help="a folder of other packs, to measure beside the nodes")
    options = parser.parse_args()
    quick = options.quick
    enter()
    import comfyui_version
    from reins.bench import (
        adapters,
        diffusion_transformers,
        examples,
        hints,
        partners,
        sharing,
        steps,
        transformer_adapters,
    )
    from reins.bench.cases import ADAPTED, EDITS, GUIDANCE, HINTED, NETWORKS, PAIRED
    from reins.bench.measure import measure

    lines = preface(comfyui_version.__version__)
    for network in [NETWORKS[0]._replace(steps=4, rounds=2)] if quick else NETWORKS:
        found = table(network, list(measure(network)))
        print("\n".join(found), flush=True)
        lines += found
    for network in [NETWORKS[0]._replace(steps=4, rounds=2)] if quick else ADAPTED:
        found = table(network, list(measure(network, GUIDANCE)), "The guidance family on ")
        print("\n".join(found), flush=True)
        lines += found
    for network in [NETWORKS[0]._replace(steps=4, rounds=2)] if quick else ADAPTED:
        found = table(network, list(measure(network, EDITS)), "Directions in h-space on ")
        print("\n".join(found), flush=True)
        lines += found
    for network in [NETWORKS[0]._replace(steps=4, rounds=2)] if quick else ADAPTED:
        found = adapters.table(network, adapters.measure(network))
        print("\n".join(found), flush=True)
        lines += found
    steered = diffusion_transformers.NETWORKS
    for network in [steered[1]._replace(rounds=1)] if quick else steered:
        found = diffusion_transformers.table(network, diffusion_transformers.measure(network))
        print("\n".join(found), flush=True)
        lines += found
    adapted = transformer_adapters.NETWORKS
    for network in [adapted[1]._replace(steps=2, rounds=1)] if quick else adapted:
        found = transformer_adapters.table(network, *transformer_adapters.measure(network, options.packs))
        print("\n".join(found), flush=True)
        lines += found
    found = steps.table(steps.measure(NETWORKS[0].make()))
    print("\n".join(found), flush=True)
    lines += found
    if not quick:  # its widths are those of the releases, a gigabyte of them
        found = sharing.table(HINTED, sharing.measure(HINTED))
        print("\n".join(found), flush=True)
        lines += found
        found = hints.table(HINTED, hints.measure(HINTED))
        print("\n".join(found), flush=True)
        lines += found
        found = examples.table(HINTED, examples.measure(HINTED))
        print("\n".join(found), flush=True)
        lines += found
        found = partners.table(PAIRED, partners.measure(PAIRED))
        print("\n".join(found), flush=True)
        lines += found
        (ROOT / "bench" / "RESULTS.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
