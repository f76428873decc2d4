"""What is measured: networks, and the nodes on them beside the host's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import comfy_extras.nodes_apg
import comfy_extras.nodes_pag
import comfy_extras.nodes_sag
from comfy.model_patcher import ModelPatcher
from reins.engine.layers.features import channels_at
from reins.engine.unet import unet_of
from reins.nodes.h_space.direction import SITE, HDirection
from reins.tests.helpers import h_space, tiny_models
from reins.tests.helpers.methods import (
    apg,
    cfg_zero,
    fdg,
    image,
    interval,
    nag,
    pag,
    pladis,
    rescale,
    sag,
    scope,
    seg,
    swg,
    tpg,
    weak,
)

Steer = Callable[[ModelPatcher], ModelPatcher]


class Case(NamedTuple):
    """A way of steering; `against` names the case of the same cfg that a user would have without the pack."""

    name: str
    cfg: float
    steer: Steer
    against: str = "plain"


class Network(NamedTuple):
    """A network, its latent, and how long it is measured."""

    name: str
    make: Callable[[], ModelPatcher]
    size: tuple[int, int]
    steps: int
    rounds: int


def host_pag(model: ModelPatcher) -> ModelPatcher:
    return comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def h_edit(model: ModelPatcher, direction: HDirection | None = None, **settings: object) -> ModelPatcher:
    stored = h_space.stored(channels=channels_at(unet_of(model), SITE))
    return h_space.edit(model, direction or stored, strength=0.1, **settings)


def host_apg(model: ModelPatcher) -> ModelPatcher:
    return comfy_extras.nodes_apg.APG.execute(model, 0.0, 15.0, -0.5).result[0]


def host_sag(model: ModelPatcher) -> ModelPatcher:
    return comfy_extras.nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0).result[0]


def sd15_layout() -> ModelPatcher:
    """Blocks, transformers and skips of SD1.5, every level 320 wide."""
    return tiny_models.sd15(
        model_channels=320, channel_mult=[1, 1, 1, 1], num_res_blocks=[2] * 4, num_heads=8,
        context_dim=tiny_models.WIDTH, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip


def narrow_layout() -> ModelPatcher:
    """The same, every level 32 wide: the number of operations bounds the time, not their size."""
    return tiny_models.sd15(
        channel_mult=[1, 1, 1, 1], num_res_blocks=[2] * 4, num_heads=8, context_dim=tiny_models.WIDTH,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip


# Blocks and widths of SD1.5 itself; its text is narrower.
REAL = {
    "model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "num_heads": 8,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip

NETWORKS = [
    Network("tiny", tiny_models.sd15, (24, 24), steps=6, rounds=7),
    Network("tiny", tiny_models.sd15, (32, 32), steps=4, rounds=5),
    Network("SD1.5 layout", sd15_layout, (16, 16), steps=4, rounds=3),
]
# Adapters act on text attention: few cells and many steps show what they add.
ADAPTED = [
    Network("tiny", tiny_models.sd15, (32, 32), steps=5, rounds=7),
    Network("SD1.5 layout", sd15_layout, (16, 16), steps=5, rounds=3),
]

# On the two sides of the size from which on layers are shared (engine/shared_rows.py).
SMALL = [
    Network("SD1.5 layout, 32 wide", narrow_layout, (9, 9), steps=6, rounds=9),
    Network("SD1.5 layout, 32 wide", narrow_layout, (12, 12), steps=6, rounds=9),
]
PAIRED = Network("SD1.5 at full width", lambda: tiny_models.sd15(**REAL), (32, 32), steps=2, rounds=2)
HINTED = Network("SD1.5 at full width", lambda: tiny_models.sd15(**REAL), (32, 32), steps=4, rounds=3)

CASES = [
    Case(name, cfg, steer, against)
    for cfg in (7.0, 1.0)
    for name, steer, against in [
        ("plain", lambda model: model, "plain"),
        ("host PAG", host_pag, "plain"),
        ("PAG", pag, "host PAG"),
        ("PAG, refresh 2", lambda model: pag(model, refresh=2), "host PAG"),
        ("SEG", seg, "host PAG"),
        ("host SAG", host_sag, "plain"),
        ("SAG", sag, "host SAG"),
        ("host PAG + host SAG", lambda model: host_sag(host_pag(model)), "plain"),
        ("PAG + SAG", lambda model: sag(pag(model)), "host PAG + host SAG"),
        ("PAG + SEG", lambda model: seg(pag(model)), "host PAG"),
        ("PAG + SEG + SAG", lambda model: sag(seg(pag(model))), "host PAG + host SAG"),
        ("Rescale", rescale, "plain"),
        ("Interval 25 to 75 %", lambda model: interval(model, 0.25, 0.75), "plain"),
    ]
    if not (cfg == 1.0 and name.startswith(("Rescale", "Interval")))
]

GUIDANCE = [
    Case(name, cfg, steer, against)
    for cfg in (7.0, 1.0)
    for name, steer, against in [
        ("plain", lambda model: model, "plain"),
        ("host PAG", host_pag, "plain"),
        ("PAG, unshared", lambda model: pag(model, share=False), "host PAG"),
        ("PAG", pag, "host PAG"),
        ("TPG", tpg, "host PAG"),
        ("PAG + SEG + TPG", lambda model: tpg(seg(pag(model))), "host PAG"),
        ("SWG, 64 px without overlap", lambda model: swg(model, tile=64, overlap=0), "plain"),
        ("NAG", nag, "plain"),
        ("PLADIS", pladis, "plain"),
        ("Weak model", weak, "plain"),
        ("host APG", host_apg, "plain"),
        ("APG", apg, "host APG"),
        ("FDG", fdg, "plain"),
        ("CFG-Zero*", cfg_zero, "plain"),
        ("Image, colour histogram", lambda model: image(model, "colour histogram"), "plain"),
        ("Image, low frequencies", image, "plain"),
        ("Scope on PAG", lambda model: scope(pag(model)), "host PAG"),
    ]
    if not (cfg == 1.0 and name in ("host APG", "APG", "FDG", "CFG-Zero*"))
]

EDITS = [
    Case(name, cfg, steer)
    for cfg in (7.0, 1.0)
    for name, steer in [
        ("plain", lambda model: model),
        ("H-Space Edit", h_edit),
        ("H-Space Edit, cond", lambda model: h_edit(model, apply_to="cond")),
        ("H-Space Edit, 0 to 60 %", lambda model: h_edit(model, end=0.6)),
        ("H-Space Edit, from prompts", lambda model: h_edit(model, h_space.live())),
        ("H-Space Edit, symmetric", lambda model: h_edit(model, mode="symmetric")),
        ("two H-Space Edits", lambda model: h_edit(h_edit(model))),
    ]
]
