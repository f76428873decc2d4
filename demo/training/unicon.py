"""A UniCon (2410.11439) for the demo model: pictures and their depth maps, in the official file's form.

The noise levels of the two branches are drawn independently, so that one file serves every pair of them: depth to
image, image to depth, both at once, and everything between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import uuid4

import comfy.ops
import torch
from torch import Tensor, nn

from ...engine.entries import KEY
from ...engine.layers.projections import ProjectionLayer
from ...engine.network import options_with_layers
from ...engine.rows.groups import GROUPS, Group
from ...engine.unet import Transformer, block_names
from ...models.unicon.files import UniConParts, flat_names
from ...models.unicon.network import JointSizes, Sizes, UniCon, places_of
from ...models.unicon.stacks import PROJECTIONS, LowRank, stacked
from ...nodes.unicon.side_by_side import BlockNumbers, SideBySide
from ..world.model import tokens
from .data import Question, ask, draw_batch, v_loss
from .frozen import FrozenBase
from .trainer import Plan
from .unicon_numbers import FILE

RANK = 16
UNSAID = (0.3, 0.12, 0.5, 0.5, 0.12, 0.12)  # what a depth map tells is often left unsaid


class UniConTask:
    """Trains a UniCon."""

    name = "unicon"
    what = "A UniCon of rank 16: pictures and their depth maps, each with a noise level of its own."
    file = FILE
    plan = Plan(steps=2600, batch=16, rate=2e-3, matrix_rate=0, average=0.997)

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.base = FrozenBase(device)
        blocks = block_names(self.base.unet)
        self.parts = UniConParts(_sizes(list(blocks.values())), {}, tuple(blocks), tuple(blocks))
        self.network = UniCon(self.parts.sizes, comfy.ops.disable_weight_init, device=device)
        self.weights = _drawn(self.parts, device)
        for name in self.network.state_dict():  # they are stacked anew in each step
            delattr(self.network.get_submodule(name.removesuffix(".weight")), "weight")
        owner = uuid4()
        around = SideBySide(self.network, owner, numbers := BlockNumbers.of(self.parts, blocks))
        self.layer = ProjectionLayer(sites=numbers.paths, around=around)
        self.groups = [Group(0), Group(0, "condition", owner)]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        names = flat_names(self.parts)
        return {names[name]: value for name, value in self.weights.items()}

    def loss(self, batch: int, generator: torch.Generator) -> Tensor:
        for name, value in stacked(self.weights, places_of(self.parts.sizes)).items():
            self.network.get_submodule(name.removesuffix(".weight")).weight = value
        drawn = draw_batch(batch, generator, unsaid=UNSAID)
        depth = (drawn.views.depth * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        latents = (drawn.latent, depth[order := torch.randperm(batch, generator=generator)])
        x, y = (ask(latent.to(self.base.device), self.base.sigmas, generator) for latent in latents)
        y = Question(*(rows[order.argsort()] for rows in y))  # else both would have their levels in one order
        asked = Question(*(torch.cat(pair) for pair in zip(x, y, strict=True)))
        words = torch.cat([tokens(drawn.prompt), tokens(drawn.prompt, depth=True)])
        context = self.base.table[words.to(self.base.device)]
        options = {KEY: [self.layer], GROUPS: self.groups, "uuids": [None, None], "cond_or_uncond": [0, 0]}
        options = options_with_layers(options, self.base.unet, asked)
        return v_loss(
            lambda x, timestep: self.base.unet(x, timestep, context, transformer_options=options), asked
        )  # fmt: skip


def _sizes(blocks: Sequence[Transformer]) -> Sizes:
    own = [[LowRank(block.width, RANK, block.width)] * len(PROJECTIONS) for block in blocks]
    text = [
        [LowRank(block.context if name in ("to_k", "to_v") else block.width, RANK, block.width) for name in PROJECTIONS]
        for block in blocks
    ]
    return Sizes(
        joints=[JointSizes(of_one, of_one, of_one[0].outputs, "conv_fuse") for of_one in own],
        conditions=list(zip(own, text, strict=True)),  # self-attention, text attention
    )


def _drawn(parts: UniConParts, device: torch.device) -> dict[str, nn.Parameter]:
    """Draws the weights. As in the paper, the second matrix of each LoRA and P start as zeros."""
    joints = parts.sizes.joints
    drawn = {f"joints.{i}.post.weight": torch.zeros(2 * one.width, 2 * one.width) for i, one in enumerate(joints)}
    for place in places_of(parts.sizes):
        for projection, sizes in zip(PROJECTIONS, place.loras, strict=True):
            stem = f"{place.stem}.{projection}"
            drawn[f"{stem}.down.weight"] = torch.randn(sizes.rank, sizes.inputs) / RANK
            drawn[f"{stem}.up.weight"] = torch.zeros(sizes.outputs, sizes.rank)
    return {name: nn.Parameter(value.to(device)) for name, value in drawn.items()}
