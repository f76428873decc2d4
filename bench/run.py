"""python3 dev.py bench [--quick] [--only NAME ...]: prints the tables and writes them to bench/RESULTS.md."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from reins.bench.cases import Network
    from reins.bench.measure import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"
TABLE = "## "  # what a table begins with
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


class Choice(NamedTuple):
    """What is measured: the tiny network alone with few rounds, and other packs from a folder."""

    quick: bool
    packs: Path | None


def networks(choice: Choice, all_of_them: Sequence[Network]) -> Sequence[Network]:
    from reins.bench.cases import NETWORKS

    return [NETWORKS[0]._replace(steps=4, rounds=2)] if choice.quick else all_of_them


def of_nodes(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import measure
    from reins.bench.cases import NETWORKS

    for network in networks(choice, NETWORKS):
        yield table(network, list(measure.measure(network)))


def of_guidance(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import measure
    from reins.bench.cases import ADAPTED, GUIDANCE

    for network in networks(choice, ADAPTED):
        yield table(network, list(measure.measure(network, GUIDANCE)), "The guidance family on ")


def of_sharing(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import sharing
    from reins.bench.cases import SMALL

    for network in [SMALL[0]._replace(steps=2, rounds=1)] if choice.quick else SMALL:
        yield sharing.table(network, sharing.measure_small(network))


def of_h_space(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import measure
    from reins.bench.cases import ADAPTED, EDITS

    for network in networks(choice, ADAPTED):
        yield table(network, list(measure.measure(network, EDITS)), "Directions in h-space on ")


def of_adapters(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import adapters
    from reins.bench.cases import ADAPTED

    for network in networks(choice, ADAPTED):
        yield adapters.table(network, adapters.measure(network))


def of_transformers(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import diffusion_transformers as bench

    for network in [bench.NETWORKS[1]._replace(rounds=1)] if choice.quick else bench.NETWORKS:
        yield bench.table(network, bench.measure(network))


def of_transformer_adapters(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import transformer_adapters as bench

    for network in [bench.NETWORKS[1]._replace(steps=2, rounds=1)] if choice.quick else bench.NETWORKS:
        yield bench.table(network, *bench.measure(network, choice.packs))


def of_loading(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import loading

    if not choice.quick and loading.STATUS.is_file():
        yield loading.table(loading.measure())


def of_steps(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import steps
    from reins.bench.cases import NETWORKS

    yield steps.table(steps.measure(NETWORKS[0].make()))


def at_full_width(choice: Choice) -> Iterator[list[str]]:
    """Networks with the widths of the releases, a gigabyte of them."""
    from reins.bench import examples, hints, partners, sharing
    from reins.bench.cases import HINTED, PAIRED

    if not choice.quick:
        yield sharing.table(HINTED, sharing.measure(HINTED))
        yield hints.table(HINTED, hints.measure(HINTED))
        yield examples.table(HINTED, examples.measure(HINTED))
        yield partners.table(PAIRED, partners.measure(PAIRED))


SECTIONS: Mapping[str, Callable[[Choice], Iterator[list[str]]]] = {
    "nodes": of_nodes,
    "guidance": of_guidance,
    "sharing": of_sharing,
    "h-space": of_h_space,
    "adapters": of_adapters,
    "transformers": of_transformers,
    "transformer-adapters": of_transformer_adapters,
    "loading": of_loading,
    "steps": of_steps,
    "full-width": at_full_width,
}


def merged(written: str, found: Sequence[Sequence[str]]) -> str:
    """The page with tables put in the place of those with the same heading. Tables without one come last."""
    start, *rest = written.split(TABLE)
    tables = {part.splitlines()[0]: part for part in rest}
    for lines in found:
        tables[lines[0].removeprefix(TABLE.strip()).strip()] = "\n".join(lines).removeprefix(TABLE)
    return TABLE.join([start, *(f"{part.rstrip()}\n\n" for part in tables.values())]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny network only, few rounds, nothing written")
    parser.add_argument("--packs", type=Path, help="a folder of other packs, to measure beside the nodes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="some of the tables; the others stay as they are")
    options = parser.parse_args()
    enter()
    import comfyui_version

    found = []
    for name in options.only or SECTIONS:
        for lines in SECTIONS[name](Choice(options.quick, options.packs)):
            print("\n".join(lines), flush=True)
            found.append(lines)
    if options.quick:
        return
    before = RESULTS.read_text(encoding="utf-8") if options.only else "\n".join(preface(comfyui_version.__version__))
    RESULTS.write_text(merged(before, found), encoding="utf-8")


if __name__ == "__main__":
    main()
