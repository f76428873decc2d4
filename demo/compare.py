"""Cuts the pictures of the workflows into a strip for each method: without and with it, the same seeds side by side.

python -m demo.compare output/demo docs/images      after a demo that ran all workflows of the demo model
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .pictures import CELL, INK, PAPER

SIDE = CELL // 2  # a pixel of the model has 4 pixels here, and 8 in the files
STEP = CELL + 16  # from one picture of a row to the next
HEAD, GAP, BETWEEN = 20, 4, 24
WIDTH = 832  # of a line: three pairs or two triples fit
PLOT = "demo_guidance_plot-demo_guidance_plot.png"


class Column(NamedTuple):
    """A label and the saved pictures below it.

    `place` is their place in a stitched file. `number` is the one picture that is shown in every group, if it is given.
    """

    label: str
    saved: str
    place: int = 0
    number: int | None = None


class Strip(NamedTuple):
    """Columns that repeat for each picture of a batch in `shown`, counted from 1."""

    columns: tuple[Column, ...]
    shown: tuple[int, ...]
    side: int = SIDE


def beside(workflow: str, shown: tuple[int, ...], side: int = SIDE, **labels: str) -> Strip:
    """The strip of pictures that a workflow saves one by one, by the names that it gives them."""
    return Strip(tuple(Column(label, f"{workflow}-{name}") for name, label in labels.items()), shown, side)


def stitched(workflow: str, shown: tuple[int, ...], labels: dict[int, str]) -> Strip:
    """The strip of pictures that a workflow stitches to one, by their places."""
    return Strip(tuple(Column(label, f"{workflow}-{workflow}", place) for place, label in labels.items()), shown)


def in_turn(workflow: str, labels: dict[str, tuple[int, int]]) -> Strip:
    """The strip of one line of stitched pictures, each by its (place, number)."""
    return Strip(tuple(Column(label, f"{workflow}-{workflow}", *which) for label, which in labels.items()), (1,))


REGIONS = "demo_ip_adapter_regions-demo_ip_adapter"
STRIPS = {
    "pag": beside("demo_pag_perturbed_attention", (4, 1, 2), demo_plain="plain", demo_pag="PAG"),
    "tpg": beside("demo_tpg_token_perturbation", (2, 3, 4), demo_plain="plain", demo_tpg="TPG"),
    "sag": beside("demo_sag_self_attention", (4, 1, 2), demo_plain="plain", demo_sag="SAG"),
    "seg": beside("demo_seg_smoothed_energy", (1, 3, 4), demo_seg_plain="plain", demo_seg="SEG"),
    "slg": beside("demo_slg_transformer", (2, 1, 3), demo_dit_plain="plain", demo_dit_slg="SLG"),
    "swg": beside("demo_swg_sliding_window", (1, 2), 192, demo_plain="plain", demo_swg="SWG"),
    "nag": beside("demo_nag_negative_without_cfg", (1, 2, 4), demo_cfg_1="CFG 1", demo_nag="NAG"),
    "pladis": beside(
        "demo_pladis_sparse_attention", (1, 3), demo_drawn="given", demo_plain="plain", demo_pladis="PLADIS"
    ),
    "weak_model": beside(
        "demo_autoguidance_weak_model", (1, 2, 3), demo_lora="LoRA", demo_autoguidance_weak_model="Weak Model"
    ),
    "apg": beside("demo_apg_fdg_cfg_zero_corrections", (1, 2, 3), demo_plain="CFG 12", demo_apg="APG"),
    "fdg": beside("demo_apg_fdg_cfg_zero_corrections", (1, 2, 3), demo_plain="CFG 12", demo_fdg="FDG"),
    "cfg_zero": beside("demo_apg_fdg_cfg_zero_corrections", (1, 2, 3), demo_plain="CFG 12", demo_cfg_zero="CFG-Zero*"),
    "interval": beside("demo_interval_and_rescale", (1, 2, 4), demo_cfg_high="CFG 12", demo_interval="Interval"),
    "rescale": beside(
        "demo_interval_and_rescale", (1, 2), demo_cfg_high="CFG 12", demo_rescale="Rescale",
        demo_interval_rescale="with both",
    ),
    "image_guidance": beside(
        "demo_image_guidance", (2, 4), demo_given="given", demo_plain="plain", demo_colours="its colours",
        demo_layout="its layout",
    ),
    "controlnext": stitched("demo_controlnext", (1, 3), {0: "hint", 1: "words alone", 2: "ControlNeXt"}),
    "control_net": stitched("demo_control_net", (1, 2), {0: "hint", 1: "ControlNet", 2: "ControlNeXt"}),
    "prompt_diffusion": stitched(
        "demo_prompt_diffusion", (1, 2, 3), {0: "example: from", 1: "example: to", 2: "given", 3: "answer"}
    ),
    "unicon": stitched("demo_unicon_depth_to_image", (1, 4), {0: "depth", 1: "words alone", 2: "UniCon"}),
    "unicon_depth": stitched("demo_unicon_image_to_depth", (1, 4), {0: "image", 1: "UniCon", 2: "true depth"}),
    "unicon_joint": stitched("demo_unicon_joint", (1, 2, 3), {0: "image", 1: "its depth"}),
    "unicon_coarse": stitched("demo_unicon_coarse", (1, 3), {0: "given", 1: "image", 2: "its depth"}),
    "unicon_clocks": stitched("demo_unicon_two_clocks", (1, 3), {0: "given", 2: "image", 3: "its depth"}),
    "ip_adapter": beside(
        "demo_ip_adapter", (1, 2), demo_ip_adapter_reference="reference", demo_ip_adapter_plain="words alone",
        demo_ip_adapter="IP-Adapter",
    ),
    "ip_adapter_regions": Strip(
        (
            Column("reference", f"{REGIONS}_two_references", place=0),
            Column("reference", f"{REGIONS}_two_references", place=1),
            Column("everywhere", f"{REGIONS}_everywhere"),
            Column("left and right", f"{REGIONS}_regions"),
        ),
        (1,),
    ),
    "clip_vision": in_turn(
        "demo_unclip_clip_vision",
        {"first": (0, 1), "0.25": (1, 2), "0.5": (1, 3), "0.75": (1, 4), "last": (2, 1)},
    ),
    "clip_mean": beside(
        "demo_unclip_clip_vision_mean", (1, 2), demo_mean_first="first", demo_mean="mean", demo_mean_second="second"
    ),
    "asyrp": beside(
        "demo_asyrp_sampler", (1, 4), demo_asyrp_smaller="strength -4", demo_asyrp_plain="0",
        demo_asyrp_larger="strength 4",
    ),
    "h_space": stitched("demo_asyrp_h_space", (1, 4), {0: "strength -4", 1: "plain", 2: "strength 4"}),
}  # fmt: skip


def cut(column: Column, number: int, folder: Path) -> Image.Image:
    """One picture of a column. The first of a batch is saved without a number, and is taken if there is no other."""
    path = folder / f"{column.saved}_{column.number or number}.png"
    with Image.open(path if path.exists() else folder / f"{column.saved}.png") as image:
        left = STEP * column.place
        return image.convert("RGB").crop((left, 0, left + CELL, CELL))


def groups(strip: Strip) -> tuple[int, int]:
    """The pixels from one group of columns to the next, and the number of groups in a line."""
    step = len(strip.columns) * (strip.side + GAP) - GAP + BETWEEN
    return step, min(max(1, (WIDTH + BETWEEN) // step), len(strip.shown))


def place_in_strip(strip: Strip, group: int, column: int) -> tuple[int, int]:
    """Left and top of a picture, below its label."""
    step, in_line = groups(strip)
    left = GAP + group % in_line * step + column * (strip.side + GAP)
    return left, group // in_line * (HEAD + strip.side + GAP) + HEAD


def draw(strip: Strip, folder: Path) -> Image.Image:
    """The strip as a picture: groups of columns with their labels, as many in a line as fit."""
    step, in_line = groups(strip)
    lines = -(-len(strip.shown) // in_line)
    sheet = Image.new("RGB", (in_line * step - BETWEEN + 2 * GAP, lines * (HEAD + strip.side + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, number in enumerate(strip.shown):
        for j, column in enumerate(strip.columns):
            left, top = place_in_strip(strip, i, j)
            pen.text((left, top - HEAD + 1), column.label, fill=INK, font=font)
            picture = cut(column, number, folder).resize((strip.side, strip.side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="the folder where the demo wrote its pictures")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sheets = {name: draw(strip, options.pictures) for name, strip in STRIPS.items()}
    with Image.open(options.pictures / PLOT) as plot:
        sheets["scope"] = plot.convert("RGB")
    for name, sheet in sheets.items():
        path = options.out / f"{name}.png"
        sheet.save(path, optimize=True)
        print(f"{path}  {sheet.width}x{sheet.height}  {path.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
