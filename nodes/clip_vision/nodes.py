"""Image embeddings between pictures, in the middle of several, and moved by words (unCLIP, 2204.06125)."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ...models.clip_vision.algebra import frame_times
from ..inputs.schema import make_input, schema
from .algebra import (
    READERS_OF_EMBEDS,
    checked_output,
    mean_of_outputs,
    move_output_by_text,
    slerp_outputs,
    warn_if_ignored,
)

MOST = 8  # outputs in one mean
MOST_FRAMES = 1024


def looked_at_model_input() -> io.Input:
    return make_input(
        io.Model, "model", optional=True,
        tooltip="The checkpoint that the result is for. It is not changed. The log then says if it ignores unCLIP "
        "Conditioning, as most do.",
    )  # fmt: skip


class CLIPVisionSlerp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_CLIPVisionSlerp",
            display_name="CLIP Vision Slerp",
            category="reins/clip-vision",
            description="Goes from one encoded picture to another along the sphere, for unCLIP Conditioning, "
            "IP-Adapter Encode and style models. With frames it gives the whole way as a list; a "
            "batch would be summed by unCLIP.",
            search_aliases=["interpolate images", "unCLIP", "slerp", "image variations", "blend", "morph"],
            inputs=[
                make_input(
                    io.ClipVisionOutput, "a", tooltip="Where the way begins. Batches go picture by picture."
                ),
                make_input(
                    io.ClipVisionOutput, "b",
                    tooltip="Where the way ends, from the same image encoder. A single picture may go with a batch.",
                ),
                make_input(
                    io.Float, "t", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How far along the way. 0 gives a and 1 gives b, unchanged.",
                ),
                make_input(
                    io.Int, "frames", default=1, min=1, max=MOST_FRAMES, optional=True,
                    tooltip="1: one output, at t. More: a list of that many outputs, evenly from a to b, both "
                    "included. t is not used then. What follows runs once for each.",
                ),
                looked_at_model_input(),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    is_output_list=True, tooltip="For unCLIP Conditioning, IP-Adapter Encode or Apply Style Model."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, a: Any, b: Any, t: float = 0.5, frames: int = 1, model: ModelPatcher | None = None
    ) -> io.NodeOutput:  # fmt: skip
        first, last = checked_output(a, "a"), checked_output(b, "b")
        if not 0 <= t <= 1:
            raise ValueError(f"t should be a number from 0 (a) to 1 (b), but is {t}. Set it to 0.5 for the middle.")
        if frames < 1:
            raise ValueError(f"frames should be 1 or more, but is {frames}. Set it to 1 for one output at t.")
        warn_if_ignored(model, first)
        return io.NodeOutput([slerp_outputs(first, last, moment) for moment in frame_times(t, frames)])


class CLIPVisionMean(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [
            make_input(
                io.ClipVisionOutput, f"output_{i}", optional=True,
                tooltip="An encoded picture; all from the same image encoder. Each picture of a batch counts as one.",
            )
            for i in range(1, MOST + 1)
        ]  # fmt: skip
        return schema(
            node_id="Reins_CLIPVisionMean",
            display_name="CLIP Vision Mean",
            category="reins/clip-vision",
            description="Makes one embedding from those of several pictures: the mean of their directions, at their "
            "mean length. Several unCLIP Conditioning nodes, or the pictures of a batch, are added up instead: the sum "
            "is longer than what unCLIP was trained on.",
            search_aliases=["average images", "unCLIP", "combine embeds", "merge images", "blend"],
            inputs=[
                *outputs,
                make_input(
                    io.String, "weights", default="", optional=True,
                    tooltip="One number per connected output, in their order, such as 1, 0.5. A negative one leads "
                    "away from its picture. Empty: all equal.",
                ),
                looked_at_model_input(),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    tooltip="The encoding of a single picture, for one unCLIP Conditioning, IP-Adapter Encode or Apply "
                    "Style Model."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, weights: str = "", model: ModelPatcher | None = None, **outputs: Any) -> io.NodeOutput:
        names = [name for name in (f"output_{i}" for i in range(1, MOST + 1)) if outputs.get(name) is not None]
        if not names:
            raise ValueError(
                "CLIP Vision Mean needs at least one encoded picture, but nothing is connected. Connect CLIP Vision "
                "Encode to output_1."
            )
        checked = {name: checked_output(outputs[name], name) for name in names}
        warn_if_ignored(model, checked[names[0]])
        return io.NodeOutput(mean_of_outputs(checked, weights))


class CLIPTextDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_CLIPTextDiff",
            display_name="CLIP Text Diff",
            category="reins/clip-vision",
            description="Moves an encoded picture by words, from what source says to what target says (text diffs of "
            "DALL-E 2). Only the image embedding moves: IP-Adapters of the plus kind and style models read hidden "
            "states and see no difference.",
            search_aliases=["text diff", "unCLIP", "DALL-E 2", "edit by text", "image variations"],
            inputs=[
                make_input(
                    io.Clip, "clip",
                    tooltip="The text encoder that was trained together with the image encoder. The text encoder of an "
                    "SD1.5 checkpoint lacks the projection: use Load CLIP with a full one.",
                ),
                make_input(
                    io.String, "source", default="", multiline=True,
                    tooltip="What the picture shows, in the part that should change, such as: a photo in winter.",
                ),
                make_input(
                    io.String, "target", default="", multiline=True,
                    tooltip="What it should show instead, otherwise in the same words: a photo in summer.",
                ),
                make_input(
                    io.ClipVisionOutput, "clip_vision_output",
                    tooltip="The encoded picture; a batch is moved picture by picture.",
                ),
                make_input(
                    io.Float, "theta", default=0.3, min=0.0, max=1.0, step=0.01,
                    tooltip="How far to turn towards the difference. 0 changes nothing. 1 leaves nothing of the "
                    "picture. The paper ends between 0.25 and 0.5.",
                ),
                looked_at_model_input(),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    tooltip="For unCLIP Conditioning, or IP-Adapter Encode with a file that reads image embeddings."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, clip: CLIP, source: str, target: str, clip_vision_output: Any, theta: float = 0.3,
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        output = checked_output(clip_vision_output, "clip_vision_output")
        if not 0 <= theta <= 1:
            raise ValueError(f"theta should be a number from 0 to 1, but is {theta}. Set it to 0.3.")
        warn_if_ignored(model, output, READERS_OF_EMBEDS)
        return io.NodeOutput(move_output_by_text(output, clip, source, target, theta))
