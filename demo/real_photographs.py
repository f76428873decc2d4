"""Makes demo/photographs: small copies of photographs that scikit-image carries, hints of them, and a short motion.

python -m demo.real_photographs [--only photographs] [--only hed ...] [--out FOLDER]

What is made needs the packages that `demo/real_hints.py` names, some in environments of their own, so each kind may be
made alone: photographs and depth first, for the other hints are made of the small copies. docs/credits.md says whose
photographs these are.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from .real_hints import (
    PICTURES,
    HintError,
    depth,
    disparity_of,
    draw_pose,
    fill_unknown,
    photograph,
    pose_points,
)

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
Points: TypeAlias = Mapping[int, tuple[float, float]]


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
    Hint("silhouette", "astronaut", "png"),
)
KINDS = ("photographs", "depth", "motion", *PICTURES)


class Turn(NamedTuple):
    """What moves: points of a pose that turn about another one, by degrees at the end, clockwise on the screen."""

    about: int
    points: tuple[int, ...]
    degrees: float


FRAMES, FRAME_MS = 23, 143  # with the pose itself 24 hints, at 7 frames a second
GREETING = (Turn(3, (4,), -115.0), Turn(1, (0, 14, 15, 16, 17), -9.0))  # a hand is raised, and the head leans to it


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


def save_motion(folder: Path) -> None:
    """Writes an animation of poses, which begins with the measured pose of the astronaut. The rest is drawn."""
    points = pose_points(photograph(str(folder / "astronaut.jpg")))
    frames = [
        Image.fromarray(draw_pose(turned(points, GREETING, eased(number / (FRAMES - 1))), SIZES["astronaut"]))
        for number in range(FRAMES)
    ]
    first, *others = frames
    first.save(
        folder / "astronaut_poses.webp", lossless=True, method=6, save_all=True, append_images=others,
        duration=FRAME_MS, loop=0,
    )  # fmt: skip


def eased(share: float) -> float:
    """Returns how far a motion is that starts and stops gently, from 0 to 1, for a share of its time."""
    return (1 - math.cos(math.pi * share)) / 2


def turned(points: Points, turns: Sequence[Turn], share: float) -> dict[int, tuple[float, float]]:
    """Returns points (x, y) by their number, after a share of each turn. Points that were not found are left out."""
    moved = dict(points)
    for turn in turns:
        x0, y0 = points[turn.about]
        angle = math.radians(turn.degrees * share)
        for number in turn.points:
            if number in points:
                x, y = points[number][0] - x0, points[number][1] - y0
                moved[number] = (
                    x0 + x * math.cos(angle) - y * math.sin(angle),
                    y0 + x * math.sin(angle) + y * math.cos(angle),
                )
    return moved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    writers = {"photographs": save_photographs, "depth": save_depth, "motion": save_motion}
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
