"""ControlNeXt (2408.06070): lets the model follow a picture of edges, depth, a pose or a mask."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..patches.controlnext import ControlNeXt, Hint, add_hint
from ..patches.controlnext_load import match_model
from ..patches.span import Span
from ..patches.unet_weights import add_unet_weights
from .schema import make_input, model_input, model_output, percent_inputs, schema
from .sockets import ControlNeXtSocket, checked_image, checked_mask

UNCOND = ("auto", "both", "cond only")


class ControlNeXtApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_ControlNeXtApply",
            display_name="ControlNeXt Apply",
            category="reins/controlnext",
            description="Lets the model follow a hint (edges, depth, pose, mask) at a small part of a ControlNet's "
            "cost. Several in a row add up in any order.",
            search_aliases=["controlnext", "apply controlnext", "control net", "hint", "pose", "depth", "canny"],
            inputs=[
                model_input(),
                ControlNeXtSocket.Input("controlnext", tooltip="From Load ControlNeXt."),
                make_input(
                    io.Image, "image",
                    tooltip="The hint, of the kind that the file was trained on, any size: it is stretched to the "
                    "picture. Several are for as many pictures, or for the frames of a video.",
                ),
                _strength_input("strength", "the hint", "1 for dense hints; for edges the authors also use 0.35."),
                _strength_input("unet_strength", "the UNet's part of the file", "It acts on the whole run."),
                *percent_inputs(),
                make_input(
                    io.Combo, "uncond", options=list(UNCOND), default=UNCOND[0],
                    tooltip="Whether the negative prompt follows the hint too. auto: as the official pipelines do (SD "
                    "and SDXL both, SVD v1 in part, SVD v2 not). cond only strengthens the hint.",
                ),
                make_input(
                    io.Mask, "mask", optional=True,
                    tooltip="Where the hint acts, over the whole picture; any size. None: everywhere.",
                ),
                make_input(
                    io.Model, "reference_model", optional=True,
                    tooltip="For a UNet file of full values: the model that they were trained on. What was learnt is "
                    "then carried to your model; without it your model's weights are replaced.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, controlnext: ControlNeXt, image: Tensor, strength: float = 1.0,
        unet_strength: float = 1.0, start_percent: float = 0.0, end_percent: float = 1.0, uncond: str = "auto",
        mask: Tensor | None = None, reference_model: ModelPatcher | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        control = checked_controlnext(controlnext)
        image, mask = checked_image(image, "image"), checked_mask(mask, "mask")
        variant, site = match_model(control, model)
        if reference_model is not None and control.unet is None:
            raise ValueError(
                f"reference_model is for a UNet file, but {control.name} was loaded without one. Choose one in Load "
                f"ControlNeXt, or disconnect reference_model."
            )
        if control.unet is not None and unet_strength:
            model = add_unet_weights(model, control.unet, unet_strength, reference_model)
        if strength:
            hint = Hint(control, variant, image[..., :3].movedim(-1, 1).float().clamp(0, 1), strength, uncond, mask)
            model = add_hint(model, hint, site, Span(start_percent, end_percent))
        return io.NodeOutput(model)


def checked_controlnext(found: Any) -> ControlNeXt:
    if not isinstance(found, ControlNeXt):
        raise ValueError(
            f"controlnext should come from Load ControlNeXt, but is {type(found).__name__}. Put that node before it."
        )
    return found


def _strength_input(name: str, of_what: str, more: str) -> io.Input:
    return make_input(
        io.Float, name, default=1.0, min=-10.0, max=10.0, step=0.01,
        tooltip=f"How strongly {of_what} acts; 0 turns it off. {more}",
    )  # fmt: skip
