"""Guidance rescale (Lin et al., 2305.08891)."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.effects import watch
from ...engine.scope import Args, add_post_cfg
from ...engine.span import WHOLE_RUN
from ...models.guidance.rescale import rescale_guidance
from ..inputs.schema import make_input, model_input, model_output, schema


class GuidanceRescale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_GuidanceRescale",
            display_name="Guidance Rescale",
            category="reins/guidance",
            description="Takes back the over-exposure and over-saturation of strong guidance: gives the sum of all "
            "terms the contrast of the positive prediction. Place it after the other guidance nodes.",
            search_aliases=["rescale cfg", "CFG rescale", "overexposed", "saturation"],
            inputs=[
                model_input(),
                make_input(
                    io.Float, "rescale", default=0.7, min=0.0, max=1.0, step=0.01,
                    tooltip="0 turns the node off, 1 gives exactly the positive prediction's contrast, 0.7 is the "
                    "paper's choice.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: ModelPatcher, rescale: float) -> io.NodeOutput:
        return io.NodeOutput(model if rescale == 0 else add_rescale(model, rescale))


def add_rescale(model: ModelPatcher, rescale: float) -> ModelPatcher:
    """Returns a clone of `model` whose result so far, with all terms, is rescaled to the positive's deviation."""

    def rescale_result(args: Args) -> Tensor:
        # The paper scales what the network predicts (eps, v, ...). The host holds x0 = a x + b * prediction, with b
        # one number per image, so subtracting a x leaves the prediction up to a factor that cancels.
        x = args["input"]
        offset = args["model"].model_sampling.calculate_denoised(args["sigma"], torch.zeros_like(x), x)
        return offset + rescale_guidance(args["denoised"] - offset, args["cond_denoised"] - offset, rescale)

    model = model.clone()
    add_post_cfg(model, "Rescale", rescale_result, watch(model, "Guidance Rescale", WHOLE_RUN, needs_cfg=True))
    return model
