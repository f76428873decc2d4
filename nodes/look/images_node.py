"""Images Side by Side and Images to Batch: several pictures to look at, and several as one batch."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..inputs.schema import make_input, schema
from ..inputs.sockets import checked_image
from .rows import covering, side_by_side

MOST, NEEDED = 6, 2  # pictures, and how many of them have to be connected


def image_inputs(tooltip: str) -> list[io.Input]:
    """Sockets for pictures, of which the first ones have to be connected. Autogrow is unknown to old hosts."""
    return [make_input(io.Image, f"image_{i}", optional=i > NEEDED, tooltip=tooltip) for i in range(1, MOST + 1)]


def connected(images: dict[str, Tensor | None]) -> dict[int, Tensor]:
    """Returns the pictures (b, h, w, 3) that are connected, by the numbers of their sockets."""
    names = {number: f"image_{number}" for number in range(1, MOST + 1)}
    return {number: checked_image(images[name], name) for number, name in names.items() if images.get(name) is not None}


class ImagesSideBySide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_ImagesSideBySide",
            display_name="Images Side by Side",
            category="reins/look",
            description="Puts up to six pictures in a row, to compare them, with a label under each. Picture n of a "
            "batch stands beside picture n of the others. Pictures of one height keep every pixel.",
            search_aliases=["compare images", "stitch images", "grid", "before after", "label", "caption", "concat"],
            inputs=[
                *image_inputs(
                    "A picture or a batch, from left to right. A single picture is shown beside every picture of a "
                    "batch. Lower ones are scaled to the height of the highest."
                ),
                make_input(
                    io.String, "labels", default="", multiline=True, optional=True, placeholder="one label a line",
                    tooltip="One line for each image, in their order: line 2 stands under image_2. An empty line: no "
                    "label. Empty: no labels.",
                ),
                make_input(
                    io.Int, "enlarge", default=1, min=1, max=64, optional=True,
                    tooltip="How many pixels wide and high each pixel is drawn, without blur. 8 for the Demo Model.",
                ),
                make_input(
                    io.Int, "gap", default=16, min=0, max=512, optional=True,
                    tooltip="The white space between two pictures, in pixels.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The row, once for each picture of the largest batch.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, labels: str = "", enlarge: int = 1, gap: int = 16, **images: Tensor | None
    ) -> io.NodeOutput:  # fmt: skip
        pictures = connected(images)
        counts = {f"image_{number}": len(picture) for number, picture in pictures.items()}
        if len({1, *counts.values()}) > 2:
            found = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ValueError(
                f"The images should be batches of one size or single pictures, but {found}. Connect as many pictures "
                f"to each, or one."
            )
        lines = [line.strip() for line in labels.rstrip().splitlines()]
        if len(lines) > MOST:
            raise ValueError(
                f"labels should have a line for each of {MOST} images at most, but has {len(lines)} lines. Write each "
                f"label in one line; a long one is wrapped by itself."
            )
        under = [lines[number - 1] if number <= len(lines) else "" for number in pictures]
        return io.NodeOutput(side_by_side(list(pictures.values()), under, enlarge, gap))


class ImagesToBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_ImagesToBatch",
            display_name="Images to Batch",
            category="reins/look",
            description="Joins up to six pictures or batches to one batch, one behind the other: hints, references or "
            "frames for nodes that take picture n of a batch for picture n.",
            search_aliases=["batch images", "image batch", "combine images", "merge images", "stack images", "join"],
            inputs=image_inputs(
                "A picture or a batch, one behind the other. All get the size of the first: the middle of another "
                "shape is cut out and scaled. Connect a batch of another such node for more than six."
            ),
            outputs=[io.Image.Output(tooltip="All pictures in the order of the inputs, in the size of the first.")],
        )

    @classmethod
    def execute(cls, **images: Tensor | None) -> io.NodeOutput:
        pictures = list(connected(images).values())
        height, width = pictures[0].shape[1:3]
        return io.NodeOutput(torch.cat([covering(picture, height, width) for picture in pictures]))
