"""The prompt of a UniCon's condition (2410.11439): the trigger that the file was trained with, then the text."""

from __future__ import annotations

from comfy.sd import CLIP
from comfy_api.latest import io

from ..inputs.schema import make_input, schema
from ..inputs.sockets import UniConSocket
from .side_by_side import UniCon, checked_unicon


class UniConPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConPrompt",
            display_name="UniCon Prompt",
            category="reins/unicon",
            description="A prompt for the condition's branch: the words that the file was trained on (depth_map, "
            "edge_map, pose_map), then yours.",
            search_aliases=["unicon trigger", "depth_map", "edge_map", "pose_map"],
            inputs=[
                make_input(io.Clip, "clip", tooltip="The text encoder of the model."),
                make_input(
                    io.String, "text", multiline=True, default="",
                    tooltip="Usually the image's own prompt; for identity and appearance a caption of the picture.",
                ),
                UniConSocket.Input("unicon", tooltip="From Load UniCon. The file decides the trigger."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For partner_positive or condition_positive.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip: CLIP, text: str, unicon: UniCon) -> io.NodeOutput:
        if clip is None:
            raise ValueError("clip should be a text encoder, but the checkpoint holds none. Load one with Load CLIP.")
        tokens = clip.tokenize(checked_unicon(unicon).trigger + text)
        return io.NodeOutput(clip.encode_from_tokens_scheduled(tokens))
