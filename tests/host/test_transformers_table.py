"""Every cell of the tables in docs/transformers.md, on the tiny transformers."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from reins.engine.sites import Site
from reins.nodes.inputs.auto_layers import chosen_sites
from reins.nodes.inputs.layers import LETTERS, OF_UNET
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.transformer_methods import FAMILIES, METHODS, make, plotted, run
from torch import Tensor

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
REFUSED = "refused: "
BLOCKS = {letter: block for block, letter in LETTERS.items() if block not in OF_UNET}
OWN_PAGES = {  # which have a column of the table of auto
    "PAG": "Reins_PerturbedAttentionGuidance", "SEG": "Reins_SmoothedEnergyGuidance",
    "SLG": "Reins_SkipLayerGuidance", "TPG": "Reins_TokenPerturbationGuidance",
}  # fmt: skip
AUTO_METHODS = ("perturbed attention", "smoothed energy", "skipped layers", "shuffled tokens")
NO_LAYER = "none"


def table(first: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table whose first heading this is."""
    (found,) = re.findall(rf"^\| {first} \|.*\n(?:\|.*\n)+", PAGE, re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines())
    return head, rows


HEAD, ROWS = table("Method")
CELLS = [(row[0], family, cell) for row in ROWS for family, cell in zip(HEAD[1:], row[1:], strict=True)]
MESSAGES = {reason: said for reason, said, _ in table("Reason")[1]}
RIGHT = [(method, family) for method, family, cell in CELLS if cell == "right"]
WRONG = [(method, family, cell.removeprefix(REFUSED)) for method, family, cell in CELLS if cell.startswith(REFUSED)]


@cache
def plain(family: str) -> Tensor:
    return run(family, make(family))


def test_the_table_has_every_method_on_every_family_and_says_right_or_the_reason_of_a_refusal():
    assert [row[0] for row in ROWS] == list(METHODS)
    assert HEAD[1:] == list(FAMILIES)
    assert set(FAMILIES.values()) == set(tiny_transformers.FAMILIES)
    assert len(RIGHT) + len(WRONG) == len(CELLS)
    assert {reason for *_, reason in WRONG} == set(MESSAGES)


# The parameter is not called a method, for then the continuous run would take some cells alone (conftest.py).
@pytest.mark.parametrize(("row", "family"), RIGHT)
def test_a_method_that_is_right_changes_the_picture_and_off_is_as_if_it_were_not_there(row, family):
    name = FAMILIES[family]
    on = run(name, METHODS[row].on(make(name), name))
    assert on.isfinite().all()
    assert torch.equal(on, plain(name)) != METHODS[row].changes
    assert torch.equal(run(name, METHODS[row].off(make(name), name)), plain(name))


@pytest.mark.parametrize(("row", "family", "reason"), WRONG)
def test_a_method_that_is_refused_stops_with_its_reason(row, family, reason):
    name = FAMILIES[family]
    model = make(name)
    with pytest.raises((ValueError, RuntimeError), match=re.escape(MESSAGES[reason])):
        run(name, METHODS[row].on(model, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_plot_draws_a_run_of_every_transformer(family):
    picture = plotted(FAMILIES[family], make(FAMILIES[family]))
    assert picture.ndim == 4 and picture.isfinite().all()


MODELS = {  # the rows of the table of auto, by the tiny network of the same class
    "SD3 Medium": "sd3", "SD3.5 Medium": "sd35m", "SD3.5 Large": "sd3", "Flux, Chroma": "flux", "Lumina2": "lumina",
    "Z-Image": "zimage", "HiDream": "hidream", "AuraFlow": "aura", "Qwen-Image": "qwen", "Wan 1.3B": "wan",
    "Wan 14B": "wan", "HunyuanVideo": "hunyuan_video", "Cosmos Predict2 2B": "predict2", "LTX-Video 2B": "ltxv",
}  # fmt: skip
DOUBLED = {"SD3.5 Medium": 13}  # blocks with a second self-attention, which come first


def sites(model: str, blocks: str) -> list[Site]:
    """The self-attentions of a model's blocks, as `d0-18, s0-37`."""
    found = []
    for letter, last in re.findall(r"(\w)0-(\d+)", blocks):
        for number in range(int(last) + 1):
            count = 2 if number < DOUBLED.get(model, 0) else 1
            found += [Site("attn1", BLOCKS[letter], number, index) for index in range(count)]
    return found


def named(sites: tuple[Site, ...]) -> str:
    """The blocks of sites as the table names them."""
    numbers = sorted({site.number for site in sites})
    ends = dict.fromkeys((numbers[0], numbers[-1]))
    return LETTERS[sites[0].block] + "-".join(map(str, ends))


def test_auto_takes_the_layers_of_the_table():
    head, rows = table("Model")
    assert [row[0] for row in rows] == list(MODELS)
    for name, blocks, *cells in rows:
        model = make(MODELS[name])
        for title, method, cell in zip(head[2:], AUTO_METHODS, cells, strict=True):
            if cell == NO_LAYER:
                assert (title, MODELS[name]) in {(method, FAMILIES[family]) for method, family, _ in WRONG}
            else:
                chosen = chosen_sites(model, "auto", sites(name, blocks), method)
                assert named(chosen) == cell.split(" ")[0], (name, title)


@pytest.mark.parametrize("title", OWN_PAGES)
def test_the_help_pages_say_the_same_of_auto(title):
    head, rows = table("Model")
    wanted = [[*row[:2], row[head.index(title)].split(" ")[0]] for row in rows if row[head.index(title)] != NO_LAYER]
    folder = ROOT / "web" / "docs"
    for page in [folder / f"{OWN_PAGES[title]}.md", *folder.glob(f"{OWN_PAGES[title]}/*.md")]:
        lines = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert [list(line) for line in lines if line[2] != "auto"] == wanted, page.name
