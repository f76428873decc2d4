"""Loads a ControlNeXt (2408.06070)."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..models.controlnext_files import VARIANTS, holds_both
from ..patches.controlnext_load import make_controlnext, make_unet_weights
from ..patches.folders import files_in, path_of
from ..patches.loading import read_file
from .schema import make_input, schema
from .sockets import ControlNeXtSocket

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
                    io.Combo, "variant", options=["auto", *VARIANTS], default="auto",
                    tooltip="How the official code of the release uses the file: sd15 · sd15-training · sdxl · svd-v1 "
                    "· svd-v2. auto: by the file's tensors and the model that it is applied to.",
                ),
                make_input(
                    io.Combo, "unet_mode", options=list(UNET_MODES), default="auto",
                    tooltip="What the UNet's part holds: increment, to be added to the model, or full values. auto: "
                    "full where they resemble the model's own. The log says which.",
                ),
                make_input(
                    io.Combo, "stem_padding", options=list(PADDINGS), default="auto",
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
