"""The trained tiny model that ships with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.demo_model import BASE_FILE, CLIP_VISION_CONFIG, CLIP_VISION_FILE
from ..patches.demo_model import load_clip_vision, load_model, pixel_space_vae
from ..patches.loading import read_file
from .schema import make_input, schema

VARIANTS = {"base": BASE_FILE}


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
                    tooltip="base: the model as trained, 9 MB, in the pack's own folder.",
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
        model = load_model(read_file(VARIANTS[variant]), VARIANTS[variant].name)
        encoder = load_clip_vision(CLIP_VISION_CONFIG, read_file(CLIP_VISION_FILE), CLIP_VISION_FILE.name)
        return io.NodeOutput(model, pixel_space_vae(), encoder)
