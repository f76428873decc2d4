"""Loads and saves directions in h-space (Asyrp, 2210.10960)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...engine.folders import files_in, path_of
from ..inputs.save import numbered_path
from ..inputs.schema import make_input, prefix_input, schema
from ..inputs.sockets import HDirectionSocket
from .direction import as_direction
from .direction_node import direction_output
from .load import load_direction, save_direction

FOLDER = "h_space"


class HDirectionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_HDirectionLoader",
            display_name="Load H-Space Direction",
            category="reins/h-space",
            description="Loads a direction in h-space: one that was captured and saved, or a delta block in either of "
            "Asyrp's layouts. The released blocks belong to 256-pixel models and cannot drive Stable Diffusion.",
            search_aliases=["h-space", "asyrp", "delta block", "load direction"],
            inputs=[
                make_input(
                    io.Combo, "name", options=files_in(FOLDER),
                    tooltip="A file in models/h_space or output/h_space. It must have as many channels as the model's "
                    "h: 1280 for SD1.x, SD2.x and SDXL.",
                )
            ],
            outputs=[direction_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(load_direction(path_of(FOLDER, name)))


class HDirectionSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_HDirectionSave",
            display_name="Save H-Space Direction",
            category="reins/h-space",
            description="Saves a captured direction as a small .safetensors file in output/h_space, where Load H-Space "
            "Direction finds it.",
            search_aliases=["h-space", "asyrp", "save direction"],
            inputs=[
                HDirectionSocket.Input("direction", tooltip="From Capture H-Space Direction."),
                prefix_input("direction"),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, direction: Any, filename_prefix: str) -> io.NodeOutput:
        save_direction(as_direction(direction), numbered_path(FOLDER, filename_prefix))
        return io.NodeOutput()
