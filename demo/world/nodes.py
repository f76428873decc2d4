"""The nodes of the demo model, the tiny trained model that ships with the pack, and of its drawn world."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from einops import repeat

from ...engine.loading import read_file
from ...nodes.inputs.schema import make_input, schema
from .dit import DIT_FILE
from .host_model import demo_config, dit_config, load_clip_vision, load_model, pixel_space_vae
from .model import (
    BASE_FILE,
    BRANCHES,
    CLIP_VISION_CONFIG,
    CLIP_VISION_FILE,
    WORDS_KEY,
    pooled_text,
    tokens,
    word_indices,
)
from .scenes import SLOTS, Views, draw, render

VARIANTS = {"base": BASE_FILE, "dit": DIT_FILE}
CONFIGS = {"base": demo_config, "dit": dit_config}


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_DemoModel",
            display_name="Demo Model",
            category="reins/demo",
            description="A tiny diffusion model that ships with the pack and draws coloured shapes in 32x32 pixels: "
            "every method can be seen at work before anything is downloaded.",
            search_aliases=["tiny model", "test model", "shapes", "try without checkpoint"],
            inputs=[
                make_input(
                    io.Combo, "variant", options=list(VARIANTS), default="base",
                    tooltip="base: a UNet, as Stable Diffusion 1.5 and SDXL have one, 9 MB, in the pack's own folder. "
                    "dit: a diffusion transformer and rectified flow of the kind of SD3, 7 MB, in the same folder.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="The model. Give it Demo Prompt as positive and negative, and an empty latent "
                                "of 256x256, which is 32x32 for it."),
                io.Vae.Output(tooltip="Turns its latents into pictures of 32x32 pixels; enlarge them by 8, nearest."),
                io.ClipVision.Output(tooltip="A tiny image encoder that has learnt the same small world."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        model = load_model(read_file(VARIANTS[variant]), VARIANTS[variant].name, CONFIGS[variant])
        encoder = load_clip_vision(CLIP_VISION_CONFIG, read_file(CLIP_VISION_FILE), CLIP_VISION_FILE.name)
        return io.NodeOutput(model, pixel_space_vae(), encoder)


class DemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_DemoPrompt",
            display_name="Demo Prompt",
            category="reins/demo",
            description="A prompt for the Demo Model, one word per line. With every word at 'any' it is the empty "
            "prompt, which is what the negative wants.",
            search_aliases=["tiny prompt", "shapes prompt", "conditioning"],
            inputs=[
                *word_inputs(with_any=True),
                make_input(
                    io.Combo, "branch", options=list(BRANCHES), default=BRANCHES[0], advanced=True,
                    tooltip="image: an ordinary picture. depth: names the depth map to adapters that have learnt to "
                    "draw one; the model itself has not.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or the negative of a sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, branch: str = BRANCHES[0], **words: str) -> io.NodeOutput:
        table = read_file(BASE_FILE)[WORDS_KEY].float()
        return io.NodeOutput([[table[tokens(word_indices(words), depth=branch == "depth")], pooled_text()]])


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
                    io.Int, "batch_size", default=1, min=1, max=4096, advanced=True,
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
    def execute(cls, seed: int = 0, batch_size: int = 1, **words: str) -> io.NodeOutput:
        chosen = word_indices(words)
        drawn = [
            render(draw(1, torch.Generator().manual_seed((seed + index) % (LARGEST_SEED + 1)), chosen))
            for index in range(batch_size)
        ]
        views = Views(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
        depth, edge = (repeat(grey, "b h w -> b h w c", c=3) for grey in (views.depth, views.edge))
        return io.NodeOutput(views.image.movedim(1, -1).contiguous(), depth, edge, views.mask)


ANY = "any"
TOOLTIPS = {
    "shape": "What is drawn",
    "colour": "The shape's colour",
    "place": "Where the shape lies in the picture",
    "size": "How large the shape is",
    "background": "Brightness of the ground",
    "texture": "Pattern over the whole picture",
}


def word_inputs(with_any: bool) -> list[io.Input]:
    """A combo box for each slot."""
    boxes = []
    for slot, words in SLOTS.items():
        options = [ANY, *words] if with_any else list(words)
        free = f" '{ANY}' leaves it to the model." if with_any else ""
        style = " The model itself does not know 'checked': load the LoRA reins-demo-checked for it."
        tooltip = f"{TOOLTIPS[slot]}: {', '.join(options)}.{free}{style if with_any and slot == 'texture' else ''}"
        is_advanced = slot == "texture" and not with_any
        boxes.append(
            make_input(io.Combo, slot, options=options, default=options[0], advanced=is_advanced, tooltip=tooltip)
        )
    return boxes
