"""Makes docs/banner.png, the one picture of the README: eight pairs, cut from the strips in docs/images.

python -m demo.banner docs/images docs/banner.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .compare import STRIPS, place_in_strip

SIZE = (1260, 540)  # 21 to 9, as the registry of custom nodes requires
SIDE, GAP, BETWEEN, LEFT, TOP, ROW = 128, 4, 44, 40, 152, 190
GROUND, BRIGHT, PALE = "#1e2129", "#f4f4ef", "#b4b9c4"
PAIRS_PER_LINE = 4


class Pair(NamedTuple):
    """Two pictures of a strip, by (group, column), what they show, and the node that makes the difference."""

    strip: str
    before: tuple[int, int]
    after: tuple[int, int]
    shown: str
    node: str


PAIRS = (
    Pair("pag", (2, 0), (2, 1), "Repairs a shape", "Perturbed-Attention Guidance"),
    Pair("swg", (1, 0), (1, 1), "One large picture, not two", "Sliding Window Guidance"),
    Pair("nag", (1, 0), (1, 1), "Negative prompt: red", "Normalized Attention Guidance"),
    Pair("interval", (0, 0), (0, 1), "Strong guidance, not burnt", "Guidance Interval"),
    Pair("controlnext", (1, 0), (1, 2), "Follows a hint", "ControlNeXt"),
    Pair("ip_adapter", (1, 0), (1, 2), "Looks like the reference", "IP-Adapter"),
    Pair("unicon_depth", (0, 0), (0, 1), "Finds the depth, and back", "UniCon"),
    Pair("weak_model", (0, 0), (0, 1), "More of what a LoRA has learnt", "Weak Model Guidance"),
)


def cut(pair: Pair, which: tuple[int, int], strips: Path) -> Image.Image:
    """One of the two pictures of a pair, by (group, column)."""
    strip = STRIPS[pair.strip]
    left, top = place_in_strip(strip, *which)
    with Image.open(strips / f"{pair.strip}.png") as sheet:
        picture = sheet.convert("RGB").crop((left, top, left + strip.side, top + strip.side))
    return picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def place_in_banner(number: int) -> tuple[int, int]:
    """Left and top of the pair with this number."""
    return LEFT + number % PAIRS_PER_LINE * (2 * SIDE + GAP + BETWEEN), TOP + number // PAIRS_PER_LINE * ROW


def draw(strips: Path) -> Image.Image:
    """The banner, from the strips in a folder."""
    banner = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(banner)
    pen.text((LEFT, 18), "ComfyUI-Reins", fill=BRIGHT, font=ImageFont.load_default(60))
    pen.text(
        (LEFT, 92), "Small nodes that steer diffusion models, and compose", fill=PALE, font=ImageFont.load_default(28)
    )
    for i, pair in enumerate(PAIRS):
        left, top = place_in_banner(i)
        banner.paste(cut(pair, pair.before, strips), (left, top))
        banner.paste(cut(pair, pair.after, strips), (left + SIDE + GAP, top))
        pen.text((left, top + SIDE + 4), pair.shown, fill=BRIGHT, font=ImageFont.load_default(18))
        pen.text((left, top + SIDE + 25), pair.node, fill=PALE, font=ImageFont.load_default(16))
    return banner


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strips", type=Path, help="the folder where demo.compare wrote its strips")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(options.strips).save(options.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
