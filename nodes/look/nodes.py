"""Guidance Scope and Guidance Plot: a picture of what each method adds to a run."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...engine.scope import add_scope, latest_record, record_of
from ..inputs.schema import make_input, model_input, model_output, schema
from .plot import plot


class GuidanceScope(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_GuidanceScope",
            display_name="Guidance Scope",
            category="reins/look",
            description="Notes what every guidance node of the pack adds in each step, for Guidance Plot. The picture "
            "stays the same, bit for bit.",
            search_aliases=["guidance scope", "debug guidance", "norm of terms"],
            inputs=[model_input()],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        return io.NodeOutput(add_scope(model))


class GuidancePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_GuidancePlot",
            display_name="Guidance Plot",
            category="reins/look",
            description="Draws what a Guidance Scope has noted in the run: the size of CFG and of every other term at "
            "each step, how much they point the same way, and the percent of each step, for start_percent and "
            "end_percent.",
            search_aliases=["guidance plot", "plot guidance", "chart"],
            inputs=[
                io.Latent.Input("after", tooltip="The latent of the sampler, so that the plot is drawn after the run."),
                make_input(
                    io.Model, "model", optional=True,
                    tooltip="The model with the scope. Without it: the scope that noted last.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The plot.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, after: Any, model: ModelPatcher | None = None) -> io.NodeOutput:
        record = latest_record() if model is None else record_of(model)
        if record is None or not record.moments:
            raise ValueError(
                "Guidance Plot should draw what a Guidance Scope has noted, but none has noted anything. Put Guidance "
                "Scope on the model before the sampler, and connect the sampler's latent to after."
            )
        return io.NodeOutput(plot(record))
