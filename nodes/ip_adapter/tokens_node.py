"""Saves and loads image tokens, so that a look can be shared without its pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...engine.folders import files_in, path_of
from ...engine.loading import read_tensor
from ..inputs.save import numbered_path
from ..inputs.schema import make_input, prefix_input, schema
from ..inputs.sockets import ImageTokensSocket, IPAdapterSocket
from .encode import TokenRequest, make_tokens
from .encode_node import as_encoding
from .load import as_ip_adapter
from .prompt import ImageTokens
from .tokens import load_tokens, save_tokens

FOLDER = "image_tokens"


class SaveImageTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SaveImageTokens",
            display_name="Save Image Tokens",
            category="reins/ip-adapter",
            description="Saves image tokens as a small .safetensors file in output/image_tokens, where Load Image "
            "Tokens finds them.",
            search_aliases=["save embeds", "ipadapter save"],
            inputs=[
                ImageTokensSocket.Input("tokens", tooltip="From IP-Adapter Encode."),
                prefix_input("tokens"),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, tokens: ImageTokens, filename_prefix: str) -> io.NodeOutput:
        save_tokens(tokens, numbered_path(FOLDER, filename_prefix))
        return io.NodeOutput()


class LoadImageTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_LoadImageTokens",
            display_name="Load Image Tokens",
            category="reins/ip-adapter",
            description="Loads image tokens from a file; no picture and no image encoder are needed.",
            search_aliases=["load embeds", "ipadpt", "ipadapter load"],
            inputs=[
                make_input(
                    io.Combo, "name", options=files_in(FOLDER),
                    tooltip="A file in models/image_tokens or output/image_tokens. The .ipadpt files of "
                    "ComfyUI_IPAdapter_plus work too.",
                ),
                IPAdapterSocket.Input(
                    "ipadapter", optional=True,
                    tooltip="For .ipadpt files alone. They hold the output of the image encoder, and the adapter makes "
                    "tokens of it.",
                ),
            ],
            outputs=[ImageTokensSocket.Output(tooltip="For IP-Adapter Apply.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str, ipadapter: Any = None) -> io.NodeOutput:
        path = path_of(FOLDER, name)
        if path.suffix != ".ipadpt":
            return io.NodeOutput(load_tokens(path))
        if ipadapter is None:
            raise ValueError(
                f"{name} holds the output of an image encoder, not tokens. Connect an ipadapter to make tokens of it."
            )
        adapter = as_ip_adapter(ipadapter)
        request = TokenRequest(as_encoding(read_tensor(path)), clip_vision=adapter.clip_vision)
        return io.NodeOutput(make_tokens(adapter, request))
