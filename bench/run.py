"""python3 dev.py bench [--quick] [--only NAME ...]: prints the tables and writes them to bench/RESULTS.md.

With --base FOLDER, another checkout of this pack, it measures the tables that compare this build with that one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from reins.bench.builds import Build
    from reins.bench.cases import Network
    from reins.bench.measure import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"
HEAD = ("cfg", "nodes", "UNet calls", "rows", "device reads", "ms", "to plain", "to", "")


def enter(*arguments: str) -> None:
    """The pack under its test name, beside the host that COMFYUI_PATH names, with arguments of the host's server."""
    spec = importlib.util.spec_from_file_location("reins_inside", ROOT / "demo" / "inside.py")
    inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inside)
    inside.load_pack()
    inside.enter_host(os.environ["COMFYUI_PATH"].split(os.pathsep)[0], *arguments)


def table(network: Network, rows: list[Row], what: str = "") -> list[str]:
    from reins.bench import result_tables

    title = result_tables.on_a_latent(f"{what}{network.name}", network.size, "per sampler step")
    return result_tables.table(title, result_tables.runs(network.steps, network.rounds), HEAD, map(cells_of, rows))


def cells_of(row: Row) -> list[str]:
    case = row.case
    against = ["", ""] if "plain" in (case.name, case.against) else [f"{row.to_against:.2f}", case.against]
    return [
        f"{case.cfg:g}", case.name, f"{row.calls:.3g}", f"{row.rows:.3g}", f"{row.reads:+.3g}",
        f"{row.milliseconds:.1f}", f"{row.to_plain:.2f}", *against,
    ]  # fmt: skip


def preface(version: str) -> list[str]:
    return [
        "# What the nodes cost", "",
        "Written by `python3 dev.py bench`. UNet calls and rows are exact counts. Device reads are numbers read from a "
        "tensor beyond those of plain sampling, on a GPU each waits for the device: one per step, and some once per "
        "run to turn percents into sigmas. Times compare cases of one run: every round goes through all cases, ratios "
        "are medians over rounds; 'to' compares with the host's own nodes. The allocator keeps its memory, because "
        "page faults would drown the rest. A CPU pays for rows; a GPU with small batches pays more for calls. Rows of "
        "other packs are measured with `--packs FOLDER` if their checkouts lie there; none is part of this pack. "
        "Tables that begin with 'Against an older build' are measured with `--base FOLDER`, a checkout of that build.",
        "",
        f"ComfyUI {version}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads on the "
        "CPU, float32, Euler, one picture.", "",
    ]  # fmt: skip


class Choice(NamedTuple):
    """What is measured: the tiny network alone with few rounds, other packs from a folder, an older build."""

    quick: bool
    packs: Path | None
    base: Path | None = None


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


def builds(choice: Choice) -> list[Build]:
    from reins.bench.builds import commit_of, older_build, this_build

    assert choice.base is not None
    return [this_build(), older_build(choice.base, commit_of(choice.base))]


def against_text(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against

    yield from against.text_tables(builds(choice), choice.packs)


def against_layers(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against

    yield against.layers_table(against.NARROW, builds(choice), choice.packs)


def against_layers_wide(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against

    yield against.layers_table(against.WIDE, builds(choice), choice.packs)


def against_loading(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against_loading as bench
    from reins.bench.loading import STATUS

    if STATUS.is_file():
        yield from bench.tables(builds(choice), choice.packs)


def against_compile(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against_compile as bench

    yield bench.table(builds(choice), bench.measure(builds(choice)))


def against_graphs(choice: Choice) -> Iterator[list[str]]:
    from reins.bench import against_compile as bench

    yield bench.table(builds(choice), bench.measure(builds(choice), after_plain=False), after_plain=False)


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


AGAINST: Mapping[str, Callable[[Choice], Iterator[list[str]]]] = {
    "against-text": against_text,
    "against-layers": against_layers,
    "against-layers-wide": against_layers_wide,
    "against-loading": against_loading,
    "against-compile": against_compile,
    "against-graphs": against_graphs,
}
BEGINNING = "Against an older build"  # of the titles of their tables


def merged(written: str, found: Sequence[Sequence[str]]) -> str:
    """The page with tables put in the place of those with the same heading. Tables without one come last."""
    from reins.bench.result_tables import HEADING

    start, *rest = written.split(HEADING)
    tables = {part.splitlines()[0]: part for part in rest}
    for lines in found:
        tables[lines[0].removeprefix(HEADING.strip()).strip()] = "\n".join(lines).removeprefix(HEADING)
    return HEADING.join([start, *(f"{part.rstrip()}\n\n" for part in tables.values())]).rstrip() + "\n"


def anew(written: str, begins: Sequence[str]) -> str:
    """A page with this beginning and the tables beside an older build that the written page has."""
    from reins.bench.result_tables import HEADING

    kept = [part for part in written.split(HEADING)[1:] if part.startswith(BEGINNING)]
    return HEADING.join(["\n".join(begins).rstrip() + "\n\n", *kept])


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny network only, few rounds, nothing written")
    parser.add_argument("--packs", type=Path, help="a folder of other packs, to measure beside the nodes")
    parser.add_argument("--base", type=Path, help="a checkout of an older build, to compare with this one")
    parser.add_argument(
        "--only", nargs="+", choices=[*SECTIONS, *AGAINST], help="some of the tables; the others stay as they are"
    )
    options = parser.parse_args(arguments)
    sections = SECTIONS if options.base is None else AGAINST
    if wrong := [name for name in options.only or () if name not in sections]:
        needs = "needs --base FOLDER" if options.base is None else "is not measured with --base"
        parser.error(f"the table {wrong[0]} {needs}")
    options.sections = {name: sections[name] for name in options.only or sections}
    return options


def main() -> None:
    options = options_of()
    if options.base is None:
        enter("--cpu")
    else:
        torch.set_num_threads(1)
        enter("--cpu", "--use-pytorch-cross-attention")  # what the host uses on a GPU
    import comfyui_version

    found = []
    for section in options.sections.values():
        for lines in section(Choice(options.quick, options.packs, options.base)):
            print("\n".join(lines), flush=True)
            found.append(lines)
    if options.quick:
        return
    written = RESULTS.read_text(encoding="utf-8")
    before = written if options.only or options.base else anew(written, preface(comfyui_version.__version__))
    RESULTS.write_text(merged(before, found), encoding="utf-8")


if __name__ == "__main__":
    main()
