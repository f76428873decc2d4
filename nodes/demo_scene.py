"""Drawn pictures of the small world: what a perfect model would make, with exact depth, edges and mask."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from einops import repeat

from ..demo.scenes import Views, draw, render
from ..models.demo_model import word_indices
from .demo_words import word_inputs
from .schema import make_input, schema

LARGEST_SEED = 2**64 - 1


class DemoScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_DemoScene",
            display_name="Demo Scene",
            category="reins/demo",
            description="Draws a picture of the Demo Model's world, with its depth, its edges and its mask: hints, "
            "references and examples for everything that takes one.",
            search_aliases=["test picture", "hint", "depth map", "edge map", "shapes"],
            inputs=[
                *word_inputs(with_any=False),
                make_input(
                    io.Int, "seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True,
                    tooltip="Moves the shape by a pixel and shifts size and colours a little.",
                ),
                make_input(
                    io.Int, "batch_size", default=1, min=1, max=4096,
                    tooltip="How many pictures; picture n is the one that seed + n draws alone.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The picture, 32x32."),
                io.Image.Output(display_name="depth", tooltip="Its depth, white is near."),
                io.Image.Output(display_name="edge", tooltip="Its outline, white on black."),
                io.Mask.Output(display_name="MASK", tooltip="1 where the shape is."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, seed: int, batch_size: int, **words: str) -> io.NodeOutput:
        chosen = word_indices(words)
        drawn = [
            render(draw(1, torch.Generator().manual_seed((seed + index) % (LARGEST_SEED + 1)), chosen))
            for index in range(batch_size)
        ]
        views = Views(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
        depth, edge = (repeat(grey, "b h w -> b h w c", c=3) for grey in (views.depth, views.edge))
        return io.NodeOutput(views.image.movedim(1, -1).contiguous(), depth, edge, views.mask)
