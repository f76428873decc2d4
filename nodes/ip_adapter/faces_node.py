"""Gives the identity of faces to FaceID files, by insightface, which the user installs."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..inputs.schema import make_input, schema
from ..inputs.sockets import FaceEmbedsSocket, checked_image
from .faces import MODELS, find_faces


class FaceEmbeds(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_FaceEmbeds",
            display_name="Face Embeds",
            category="reins/ip-adapter",
            description="Finds the largest face of each picture and what identifies it, for FaceID files. Needs the "
            "Python package insightface and its models.",
            search_aliases=["insightface", "FaceID", "ArcFace", "face embedding"],
            inputs=[
                make_input(io.Image, "image", tooltip="One face per picture. Of several the largest is taken."),
                make_input(
                    io.Combo, "model_name", options=list(MODELS), default=MODELS[0],
                    tooltip="buffalo_l suits the SD1.5 and SDXL files. antelopev2 is for Kolors. The models lie in "
                    "models/insightface/models.",
                ),
            ],
            outputs=[
                FaceEmbedsSocket.Output(tooltip="One identity per picture, for IP-Adapter Encode."),
                io.Image.Output(
                    display_name="face", tooltip="The faces, cut out and upright, as image for FaceID plus files."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image: Tensor, model_name: str = MODELS[0]) -> io.NodeOutput:
        return io.NodeOutput(*find_faces(checked_image(image, "image"), model_name))
