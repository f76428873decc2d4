"""Prompt Diffusion (2305.01115): a ControlNet that is told what to do by an example."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ...engine.folders import files_in, path_of
from ...engine.loading import read_file
from ..inputs.schema import make_input, schema
from ..inputs.sockets import checked_image
from .control import RANGES, PromptDiffusion, checked_prompt_diffusion, pair_of, with_example
from .load import make_prompt_diffusion

FOLDER = "controlnet"
ALIASES = ["prompt diffusion", "in-context", "example", "visual prompt", "controlnet", "depth", "hed", "segmentation"]


class PromptDiffusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_PromptDiffusionLoader",
            display_name="Load Prompt Diffusion",
            category="reins/prompt-diffusion",
            description="Loads a Prompt Diffusion for SD1.5: the original checkpoint, of which only the control part "
            "is taken, or its diffusers version.",
            search_aliases=ALIASES,
            inputs=[
                make_input(
                    io.Combo, "name", options=files_in(FOLDER),
                    tooltip="A .safetensors, .bin or .ckpt file in models/controlnet. Load ControlNet Model cannot "
                    "load it.",
                )
            ],
            outputs=[io.ControlNet.Output(tooltip="For Prompt Diffusion Example.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(make_prompt_diffusion(read_file(path_of(FOLDER, name)), name))


class PromptDiffusionExample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_PromptDiffusionExample",
            display_name="Prompt Diffusion Example",
            category="reins/prompt-diffusion",
            description="Shows a Prompt Diffusion a picture and what was made of it. Apply ControlNet then does the "
            "same to its own image. It was trained on six tasks: a photo to its segmentation, depth or edge (HED) "
            "map, with the prompts segmentation map, depth map and hed map, and each map back to a photo, with a "
            "prompt that describes the photo.",
            search_aliases=ALIASES,
            inputs=[
                make_input(io.ControlNet, "control_net", tooltip="From Load Prompt Diffusion. The node makes a copy."),
                make_input(
                    io.Image, "source",
                    tooltip="The example's picture before: a photo, or a map of one (segmentation, depth, hed). Of the "
                    "kind that Apply ControlNet gets as its image. The order is source, then target.",
                ),
                make_input(
                    io.Image, "target",
                    tooltip="The example's picture after. For photo to map, the source's map, and the prompt has to be "
                    "one of: segmentation map · depth map · hed map. For map to photo, its photo, and the prompt "
                    "describes the picture that you want. Several go with as many sources, or with one.",
                ),
                make_input(
                    io.Combo, "pixel_range", options=list(RANGES), default=next(iter(RANGES)),
                    tooltip="The range of numbers that the network gets for the example and the image. -1..1 (as "
                    "trained): that of the original. 0..1 (diffusers example): what the diffusers example feeds.",
                ),
                make_input(
                    io.Boolean, "drop", default=False,
                    tooltip="Leaves out the example, as training did at times. Apply such a copy to the negative "
                    "prompt and one with the example to the positive: guidance then strengthens the example too.",
                ),
            ],
            outputs=[io.ControlNet.Output(tooltip="For Apply ControlNet, whose image is the picture to treat.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, control_net: PromptDiffusion, source: Tensor, target: Tensor, pixel_range: str = next(iter(RANGES)),
        drop: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        control = checked_prompt_diffusion(control_net)
        pair = pair_of(checked_image(source, "source"), checked_image(target, "target"))
        return io.NodeOutput(with_example(control, pair, RANGES[pixel_range], drop))
