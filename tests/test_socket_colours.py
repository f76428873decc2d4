"""Every socket type of this pack has a colour that tells it apart, from the others and from ComfyUI's own types."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from reins.tests.helpers.colours import (
    SCRIPT,
    SIGHTS,
    Distance,
    contrast,
    distance,
    lab,
    linear,
    ours,
    too_near,
)

ROOT = Path(__file__).parents[1]
SOCKETS = ROOT / "nodes" / "inputs" / "sockets.py"
PEERS = {"EMBEDS"}  # of ComfyUI_IPAdapter_plus, which alone should say how it looks
APART = Distance(38, 15)
APART_FROM_HOST = Distance(18, 8)
READABLE = 3.0  # WCAG 2, success criterion 1.4.11
NODES = {"classic, dark": "#353535", "classic, light": "#f5f5f5", "2.0, dark": "#262729", "2.0, light": "#ffffff"}
SAME = {
    "NOISE": "#b0b0b0", "GUIDER": "#66ffff", "SAMPLER": "#ecb4b4", "SIGMAS": "#cdffcd", "TAESD": "#dcc274",
    "an unknown type in Nodes 2.0": "#aaaaaa", "a wire of an unknown type": "#99aa99",
    "an unknown type": "#777788", "an unknown type that is connected": "#77ff77",
}  # fmt: skip
PALETTES = {  # of the editor 1.58.1, and since long before
    "dark": SAME | {
        "CLIP": "#ffd500", "CLIP_VISION": "#a8dadc", "CLIP_VISION_OUTPUT": "#ad7452", "CONDITIONING": "#ffa931",
        "CONTROL_NET": "#6ee7b7", "IMAGE": "#64b5f6", "LATENT": "#ff9cf9", "MASK": "#81c784", "MODEL": "#b39ddb",
        "STYLE_MODEL": "#c2ffae", "VAE": "#ff6e6e",
    },
    "light": SAME | {
        "CLIP": "#ffa726", "CLIP_VISION": "#5c6bc0", "CLIP_VISION_OUTPUT": "#8d6e63", "CONDITIONING": "#ef5350",
        "CONTROL_NET": "#66bb6a", "IMAGE": "#42a5f5", "LATENT": "#ab47bc", "MASK": "#9ccc65", "MODEL": "#7e57c2",
        "STYLE_MODEL": "#d4e157", "VAE": "#ff7043",
    },
}  # fmt: skip


def test_the_types_with_a_colour_are_those_of_this_pack():
    named = re.findall(r'io\.Custom\("(\w+)"\)', SOCKETS.read_text(encoding="utf-8"))
    assert set(ours()) == set(named) - PEERS
    assert set(named) > PEERS
    assert len(ours()) == len(re.findall(r"#[0-9a-f]{3,6}\b", SCRIPT.read_text(encoding="utf-8")))


def test_the_list_of_nodes_shows_each_type_with_its_colour():
    text = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| \w+, `(#\w+)` \| ", text, re.MULTILINE)) == ours()


def test_no_other_file_makes_a_socket_type():
    files = [path for folder in ("nodes", "demo", "engine") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if "io.Custom(" in path.read_text(encoding="utf-8")] == [SOCKETS]


def test_our_types_are_apart_from_each_other():
    assert list(too_near(ours(), ours(), APART)) == []


@pytest.mark.parametrize("palette", PALETTES)
def test_our_types_are_apart_from_those_of_comfyui(palette):
    assert list(too_near(ours(), PALETTES[palette], APART_FROM_HOST)) == []


@pytest.mark.parametrize("node", NODES)
def test_our_types_are_readable_on_a_node(node):
    assert {name: colour for name, colour in ours().items() if contrast(colour, NODES[node]) < READABLE} == {}


@pytest.mark.parametrize("mine", ["#a8a8a8", "#ac7456", "#64b0f0"])
def test_the_test_of_distances_sees_a_colour_like_one_of_comfyui(mine):
    assert list(too_near({"MINE": mine}, PALETTES["dark"], APART_FROM_HOST))


def test_the_test_of_distances_sees_green_and_orange_as_the_colour_blind_do():
    green, orange = "#648c1e", "#dc6e00"
    assert distance(green, orange).seen > APART.seen
    assert distance(green, orange).colour_blind < APART.colour_blind


def test_lab_and_contrast_are_those_of_the_books():
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert lab("#0000ff") == pytest.approx([32.30, 79.19, -107.86], abs=0.02)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("sight", SIGHTS)
def test_greys_look_the_same_to_everyone(sight):
    for grey in ("#000000", "#353535", "#f5f5f5"):
        assert SIGHTS[sight] @ linear(grey) == pytest.approx(linear(grey), abs=1e-5)


@pytest.mark.parametrize("sight", ["deuteranopia", "protanopia"])
def test_the_colour_blind_see_two_colours_less_well_apart_if_red_or_green_alone_differs(sight):
    for first, second in combinations(("#a00000", "#505000", "#007000"), 2):
        seen, blind = (np.linalg.norm(lab(first, SIGHTS[s]) - lab(second, SIGHTS[s])) for s in ("all cones", sight))
        assert blind < 0.7 * seen
