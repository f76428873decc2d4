"""Makes demo/photographs: small copies of photographs that scikit-image carries, and hints of them.

python -m demo.real_photographs [--only photographs] [--only hed ...] [--out FOLDER]

What is made needs the packages that `demo/real_hints.py` names, some in environments of their own, so each kind may be
made alone: photographs and depth first, for the other hints are made of the small copies. docs/credits.md says whose
photographs these are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .real_hints import PICTURES, HintError, depth, disparity_of, fill_unknown, photograph

FOLDER = Path(__file__).parent / "photographs"
JPEG_QUALITY, HINT_QUALITY = 78, 70
# Widths and heights that are odd where the photograph allows it, as pictures of the world are.
SIZES: Mapping[str, tuple[int, int]] = {
    "astronaut": (512, 512),
    "camera": (512, 512),
    "chelsea": (451, 300),
    "coffee": (600, 400),
    "motorcycle": (593, 400),
}
MEASURED = (297, 200)  # the size of the disparities that are stored in 16 bits
STEPS_PER_PIXEL = 16


class Hint(NamedTuple):
    """A hint of a photograph. Soft ones are smaller as JPEG, sharp ones as PNG."""

    kind: str
    photograph: str
    ending: str


HINTS = (
    Hint("canny", "coffee", "png"),
    Hint("hed", "chelsea", "jpg"),
    Hint("hed", "motorcycle", "jpg"),
    Hint("pose", "astronaut", "png"),
    Hint("pose", "camera", "png"),
)
KINDS = ("photographs", "depth", *PICTURES)


def save_photographs(folder: Path) -> None:
    """Writes the photographs, shrunk. The grey one has one channel."""
    for name, size in SIZES.items():
        image = Image.fromarray(photograph(name)).resize(size, Image.Resampling.LANCZOS)
        image = image.convert("L") if name == "camera" else image
        image.save(folder / f"{name}.jpg", quality=JPEG_QUALITY, optimize=True)


def save_depth(folder: Path) -> None:
    """Writes what was measured of the motorcycle: its depth as a hint, and its disparities in 16 bits.

    Disparities shrink with the picture, and unknown ones have been filled. The hint has a palette, because it is
    smaller than three channels, and some versions of ComfyUI load the white of a grey PNG as 255/256.
    """
    full = fill_unknown(disparity_of("motorcycle"))
    hint = Image.fromarray(depth(_shrunk(full, SIZES["motorcycle"])))
    hint.convert("P").save(folder / "motorcycle_depth.png", optimize=True)
    stored = np.round(_shrunk(full, MEASURED) * STEPS_PER_PIXEL).astype(np.uint16)
    Image.fromarray(stored).save(folder / "motorcycle_disparity.png", optimize=True)


def _shrunk(disparity: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns disparities (h, w) of a picture that is shrunk to a width and a height."""
    small = Image.fromarray(disparity).resize(size, Image.Resampling.BOX)
    return np.asarray(small) * (size[0] / disparity.shape[1])


def save_hints(folder: Path, kind: str) -> None:
    """Writes the hints of one kind."""
    for hint in HINTS:
        if hint.kind == kind:
            made = PICTURES[kind](photograph(str(folder / f"{hint.photograph}.jpg")))
            path = folder / f"{hint.photograph}_{kind}.{hint.ending}"
            Image.fromarray(made).convert("RGB").save(path, quality=HINT_QUALITY, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    writers = {"photographs": save_photographs, "depth": save_depth}
    try:
        for kind in options.only or KINDS:
            if kind in writers:
                writers[kind](options.out)
            else:
                save_hints(options.out, kind)
    except HintError as error:
        print(f"real_photographs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
