"""Loads an IP-Adapter file (2308.06721)."""

from __future__ import annotations

from comfy_api.latest import io

from ...engine.folders import files_in, path_of
from ...engine.loading import read_file
from ..inputs.schema import make_input, schema
from ..inputs.sockets import IPAdapterSocket
from .load import make_ip_adapter, with_pooling

NO_HEAD = "none"


class IPAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_IPAdapterLoader",
            display_name="Load IP-Adapter",
            category="reins/ip-adapter",
            description="Loads an IP-Adapter of any released kind: what it is, and which image encoder it wants, is "
            "read from the tensors, not from the file's name.",
            search_aliases=["ipadapter", "ip adapter loader", "FaceID", "image prompt", "style reference"],
            inputs=[
                make_input(
                    io.Combo, "name", options=files_in("ipadapter"),
                    tooltip="A .safetensors or .bin file in models/ipadapter.",
                ),
                make_input(
                    io.Combo, "face_version", options=["auto", "v1", "v2"], default="auto",
                    tooltip="For FaceID plus alone, whose versions have the same tensors. auto: v2 for SDXL and for "
                    "files with plusv2 in their name, else v1.",
                ),
                make_input(
                    io.Combo, "pooling_head", options=[NO_HEAD, *files_in("clip_vision")], default=NO_HEAD,
                    optional=True,
                    tooltip="For InstantX's file for Flux alone: the file of its image encoder, of which it reads a "
                    "part that ComfyUI leaves out. none: for all others.",
                ),
            ],
            outputs=[IPAdapterSocket.Output(tooltip="For the IP-Adapter nodes.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str, face_version: str = "auto", pooling_head: str = NO_HEAD) -> io.NodeOutput:
        adapter = make_ip_adapter(read_file(path_of("ipadapter", name)), name, face_version)
        if pooling_head != NO_HEAD:
            adapter = with_pooling(adapter, read_file(path_of("clip_vision", pooling_head)), pooling_head)
        return io.NodeOutput(adapter)
