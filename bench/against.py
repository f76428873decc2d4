"""Methods beside an older build of the pack and beside other packs: operations, memory and time of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import comfy_extras.nodes_pag
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import unet_of
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.transformer_ip_adapters import nested

from . import least, packs, result_tables
from .builds import Build, MissingInput, shelf
from .by_id import TOKENS, ByBuild, Drawn, nag, pag, pladis
from .counting import interleaved, operations_per_step, peak_of, ratio

CFG, STEPS = 7.0, 12  # what is made once in a run counts for a picture of few steps
PEER, ADAPTER_PEER = "sd-perturbed-attention", "ComfyUI_IPAdapter_plus"
TITLE = "Against an older build: "
HEAD = (
    "nodes", "build", "operations per step", "beyond plain", "peak, MB", "CPU ms", "to plain",
    "to the older build",
)  # fmt: skip
NOTE = (
    "Operations of torch that compute or copy are exact counts of the second and third step; on a GPU each is a launch "
    "at least. Memory is what a step allocates at most beside the model. Times are those of the processor. Attentions "
    "are torch's own, as on a GPU. Weights are random, texts have {tokens} tokens. UniCon is compared with two plain "
    "pictures. {least}The older build is the commit {older}."
)
LEAST = "least"
LEAST_NOTE = (
    "Rows of the build 'least' have nothing of this pack: a second positive in the same batch, and a bare function in "
    "the host's slot that attends to four tokens and adds the result. "
)


class Layout(NamedTuple):
    """A network with the blocks of a release in less width, and how long it is measured."""

    name: str
    settings: Mapping[str, object]
    size: tuple[int, int]
    rounds: int
    tokens: int = TOKENS


class Case(NamedTuple):
    """A way of steering, and the build that does it; an empty one is the host."""

    name: str
    build: str
    model: ModelPatcher
    batch: int = 1
    positives: int = 1


class Row(NamedTuple):
    case: Case
    operations: float
    beyond: float
    peak: int
    milliseconds: float
    to_plain: float
    to_older: float | None


def of_sd15(width: int, size: tuple[int, int], rounds: int) -> Layout:
    """Blocks, transformers and skips of SD1.5, every level equally wide."""
    settings = {
        "model_channels": width, "channel_mult": [1, 1, 1, 1], "num_res_blocks": [2] * 4, "num_heads": 8,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
    }  # fmt: skip
    return Layout(f"SD1.5's layout, {width} wide", settings, size, rounds)


SDXL = Layout(
    "SDXL's layout, a tenth as wide",
    {
        "model_channels": 32, "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "num_heads": -1,
        "num_head_channels": 16, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
    },
    (16, 16), 5,
)  # fmt: skip
BRIEF = SDXL._replace(name=f"{SDXL.name}, short texts", tokens=tiny_models.TOKENS)
NARROW, WIDE = of_sd15(32, (16, 16), 9), of_sd15(320, (16, 16), 5)  # launches bound a step of the first
LARGE = Layout(  # whose attentions take most of the memory
    "three transformers",
    {
        "channel_mult": [1, 1], "num_res_blocks": [1, 1], "num_heads": 8, "transformer_depth": [1, 0],
        "transformer_depth_middle": 0, "transformer_depth_output": [0, 0, 1, 1],
    },
    (64, 64), 1,
)  # fmt: skip


def host_pag(model: ModelPatcher) -> ModelPatcher:
    return comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def by_builds(ways: Mapping[str, ByBuild], builds: Sequence[Build], model: ModelPatcher) -> Iterator[Case]:
    """Each way by each build that can do it."""
    for name, way in ways.items():
        for build in builds:
            try:
                yield Case(name, build.name, way(build, model))
            except MissingInput:
                continue


def of_text(builds: Sequence[Build], model: ModelPatcher, folder: Path | None, tokens: int = TOKENS) -> list[Case]:
    """NAG and PLADIS, by all builds and by another pack if its checkout lies in the folder."""
    ways: dict[str, ByBuild] = {"NAG": partial(nag, tokens=tokens), "PLADIS": pladis}
    found = [Case("plain", "", model), *by_builds(ways, builds, model)]
    if folder is None:
        return found
    their_nag = packs.load(folder, PEER, "nag_nodes").NormalizedAttentionGuidance()
    their_pladis = packs.load(folder, PEER, "pladis_nodes").Pladis()
    negative = tiny_models.text(3, tokens)
    return [
        *found,
        Case("NAG", PEER, their_nag.patch(model, negative)[0]),
        Case("PLADIS", PEER, their_pladis.patch(model, unet_block_list=_all_blocks(model))[0]),
    ]


def _all_blocks(model: ModelPatcher) -> str:
    """The blocks with transformers as sd-perturbed-attention counts them. By itself PLADIS there omits the middle."""
    letters = {"input_blocks": "d", "middle_block": "m", "output_blocks": "u"}
    first = [name for name, _ in unet_of(model).named_modules() if name.endswith(".transformer_blocks.0")]
    parts = [letters[name.split(".")[0]] for name in first]
    return ",".join(f"{part}{parts[:place].count(part)}" for place, part in enumerate(parts))


def of_layers(builds: Sequence[Build], model: ModelPatcher, drawn: Drawn) -> list[Case]:
    """What costs Python in each layer, and evaluations that are left out."""
    ways: dict[str, ByBuild] = {
        "PAG on m0": pag,
        "PAG on m0, unshared": lambda build, model: pag(build, model, share_layers=False),
        "PAG on m0, refresh 2": lambda build, model: pag(build, model, refresh=2),
        "PAG on all layers": lambda build, model: pag(build, model, layers="all"),
        "IP-Adapter": drawn.ip_adapter,
        "two IP-Adapters": drawn.two_ip_adapters,
        "UniCon Apply": drawn.beside,
    }
    plain = [Case("plain", "", model), Case("plain, two pictures", "", model, 2), Case("PAG", "host", host_pag(model))]
    at_least = [
        Case("a third row alone", LEAST, model, positives=2),
        Case("attention to 4 tokens alone", LEAST, least.with_image_attentions(model, 1)),
        Case("two of them alone", LEAST, least.with_image_attentions(model, 2)),
    ]
    return [*plain, *by_builds(ways, builds, model), *at_least]


def their_ip_adapters(folder: Path, model: ModelPatcher) -> list[Case]:
    """One and two adapters by IPAdapter_plus, of the same sizes."""
    apply = packs.load(folder, ADAPTER_PEER, "IPAdapterPlus").ipadapter_execute
    file = nested(ip_adapter.file_for(model))
    embedding = torch.randn((1, ip_adapter.EMBEDS), generator=torch.Generator().manual_seed(1))
    one, two = model.clone(), model.clone()
    for each in (one, two, two):
        apply(each, file, None, pos_embed=embedding)
    return [Case("IP-Adapter", ADAPTER_PEER, one), Case("two IP-Adapters", ADAPTER_PEER, two)]


def text_tables(builds: Sequence[Build], folder: Path | None) -> Iterator[list[str]]:
    """NAG and PLADIS on the layout of SDXL, and their memory on a large latent."""
    for layout in (BRIEF, SDXL, LARGE):
        model = tiny_models.sd15(**layout.settings)
        cases = of_text(builds, model, folder, layout.tokens)
        yield table("text attention", layout, builds, measure(layout, cases, builds))


def layers_table(layout: Layout, builds: Sequence[Build], folder: Path | None) -> list[str]:
    model = tiny_models.sd15(**layout.settings)
    with shelf() as files:
        cases = of_layers(builds, model, Drawn(files, model, layout.size))
        cases += their_ip_adapters(folder, model) if folder is not None else []
        return table("layers", layout, builds, measure(layout, cases, builds))


def measure(layout: Layout, cases: Sequence[Case], builds: Sequence[Build]) -> list[Row]:
    """All cases; rounds go through them in turn. The last of the builds is the older one."""
    texts = {name: tiny_models.text(seed, layout.tokens) for seed, name in enumerate(("positive", "negative"), 1)}

    def run(case: Case, steps: int) -> None:
        given = {**texts, "positive": texts["positive"] * case.positives}
        tiny_models.sample(case.model, layout.size, case.batch, CFG, steps, **given)

    ways: dict[tuple[str, str], Callable[[], None]] = {
        (case.name, case.build): lambda case=case: run(case, STEPS) for case in cases
    }
    operations = {case: operations_per_step(lambda steps, case=case: run(case, steps)) for case in cases}
    peaks = {case: peak_of(lambda steps, case=case: run(case, steps)) for case in cases}
    seconds = interleaved(ways, layout.rounds, time.process_time)
    rows = []
    for case in cases:
        own = seconds[case.name, case.build]
        plain = next(
            each for each in cases if each.name == ("plain, two pictures" if "UniCon" in case.name else "plain")
        )
        older = seconds.get((case.name, builds[-1].name)) if case.build == builds[0].name and builds[1:] else None
        rows.append(
            Row(
                case, operations[case], operations[case] - operations[plain], peaks[case],
                1000 * statistics.median(own) / STEPS, ratio(own, seconds[plain.name, plain.build]),
                None if older is None else ratio(own, older),
            )
        )  # fmt: skip
    return rows


def table(what: str, layout: Layout, builds: Sequence[Build], rows: Sequence[Row]) -> list[str]:
    title = result_tables.on_a_latent(f"{TITLE}{what} on {layout.name}", layout.size, f"cfg {CFG:g}")
    least_note = LEAST_NOTE if any(row.case.build == LEAST for row in rows) else ""
    note = NOTE.format(tokens=layout.tokens, least=least_note, older=builds[-1].name)
    words = result_tables.runs(STEPS, layout.rounds, note)
    cells = [
        (
            row.case.name, row.case.build, f"{row.operations:.6g}", f"{row.beyond:+.6g}", f"{row.peak / 1e6:.1f}",
            f"{row.milliseconds:.0f}", f"{row.to_plain:.2f}", "" if row.to_older is None else f"{row.to_older:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return result_tables.table(title, words, HEAD, cells)
