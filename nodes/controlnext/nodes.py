"""ControlNeXt (2408.06070): lets the model follow a picture of edges, depth, a pose or a mask."""

from __future__ import annotations

import logging
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.folders import files_in, path_of
from ...engine.loading import read_file
from ...engine.span import Span
from ...engine.unet_weights import add_unet_weights
from ...models.controlnext.files import VARIANTS, holds_both
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import ControlNeXtSocket, checked_image, checked_mask, hides_all
from .hint import ControlNeXt, Hint, add_hint
from .load import make_controlnext, make_unet_weights, match_controlnext

UNCOND_MODES = ("auto", "both", "cond only")


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
                    "picture. Several hints are for the same number of pictures, or for the frames of a video.",
                ),
                _strength_input("strength", "the hint", "1 for dense hints; for edges the authors also use 0.35."),
                _strength_input("unet_strength", "the UNet's part of the file", "It acts on the whole run."),
                *percent_inputs(),
                make_input(
                    io.Combo, "uncond", options=list(UNCOND_MODES), default=UNCOND_MODES[0], advanced=True,
                    tooltip="Whether the negative prompt follows the hint too. auto: as the official pipelines do (SD "
                    "and SDXL both, SVD v1 in part, SVD v2 not). cond only strengthens the hint.",
                ),
                make_input(
                    io.Mask, "mask", optional=True,
                    tooltip="Where the hint acts, over the whole picture; any size. None: everywhere.",
                ),
                make_input(
                    io.Model, "reference_model", optional=True,
                    tooltip="For a UNet file of full values: the model that the file was trained on. What was learnt "
                    "is then carried to your model. Without it your model's weights are replaced.",
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
        variant, site = match_controlnext(control, model)
        if reference_model is not None and control.unet is None:
            raise ValueError(
                f"reference_model is for a UNet file, but {control.name} was loaded without one. Choose one in Load "
                f"ControlNeXt, or disconnect reference_model."
            )
        adds_weights = control.unet is not None and unet_strength != 0
        if not (adds_weights or strength) or hides_all(mask, "mask", "ControlNeXt Apply"):
            return io.NodeOutput(model)
        if adds_weights:
            model = add_unet_weights(model, control.unet, unet_strength, reference_model)
        if strength:
            hint = Hint(control, variant, image.movedim(-1, 1), strength, uncond, mask)
            model = add_hint(model, hint, site, Span(start_percent, end_percent))
        return io.NodeOutput(model)


def checked_controlnext(control: Any) -> ControlNeXt:
    """Returns a ControlNeXt as it is. Raises ValueError if it is something else."""
    if not isinstance(control, ControlNeXt):
        raise ValueError(
            f"controlnext should come from Load ControlNeXt, but is {type(control).__name__}. Put that node before it."
        )
    return control


def _strength_input(name: str, of_what: str, more: str) -> io.Input:
    return make_input(
        io.Float, name, default=1.0, min=-10.0, max=10.0, step=0.01,
        tooltip=f"How strongly {of_what} acts; 0 turns it off. {more}",
    )  # fmt: skip


logger = logging.getLogger(__name__)
FOLDER, NONE = "controlnext", "none"
UNET_MODES = ("auto", "increment", "full")
PADDINGS = {"auto": None, "0": 0, "1": 1}


class ControlNeXtLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_ControlNeXtLoader",
            display_name="Load ControlNeXt",
            category="reins/controlnext",
            description="Loads a ControlNeXt of any release (SD1.5, SDXL, SVD) and, if there is one, the file with the "
            "weights of the UNet that were trained with it.",
            search_aliases=["controlnext", "controlnext loader", "control net", "hint", "pose", "depth", "canny"],
            inputs=[
                make_input(
                    io.Combo, "control_name", options=files_in(FOLDER),
                    tooltip="The control network: a .safetensors or .bin file in models/controlnext.",
                ),
                make_input(
                    io.Combo, "unet_name", options=[NONE, *files_in(FOLDER)], default=NONE,
                    tooltip="The UNet's part of the release, in the same folder; none leaves the model's weights as "
                    "they are. A training checkpoint that holds both parts is chosen in both inputs.",
                ),
                make_input(
                    io.Combo, "variant", options=["auto", *VARIANTS], default="auto", advanced=True,
                    tooltip="How the official code of the release uses the file: sd15 · sd15-training · sdxl · svd-v1 "
                    "· svd-v2. auto: by the file's tensors and the model that it is applied to.",
                ),
                make_input(
                    io.Combo, "unet_mode", options=list(UNET_MODES), default="auto", advanced=True,
                    tooltip="What the UNet's part holds: increment, to be added to the model, or full values. auto: "
                    "full if the numbers resemble the model's own. The log says which.",
                ),
                make_input(
                    io.Combo, "stem_padding", options=list(PADDINGS), default="auto", advanced=True,
                    tooltip="Whether the second and third convolution pad the hint. auto: 0 for the SVD releases, "
                    "else 1. Choose 1 for SVD files that were trained with the official training folder.",
                ),
            ],
            outputs=[ControlNeXtSocket.Output(tooltip="For ControlNeXt Apply.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, control_name: str, unet_name: str = NONE, variant: str = "auto", unet_mode: str = "auto",
        stem_padding: str = "auto",
    ) -> io.NodeOutput:  # fmt: skip
        control = read_file(path_of(FOLDER, control_name))
        unet = None
        if unet_name == NONE and holds_both(control):
            logger.info("%s holds weights of the UNet too; to use them, choose it as unet_name", control_name)
        if unet_name != NONE:
            weights = control if unet_name == control_name else read_file(path_of(FOLDER, unet_name))
            unet = make_unet_weights(weights, unet_name, unet_mode)
        return io.NodeOutput(make_controlnext(control, control_name, variant, PADDINGS[stem_padding], unet))
