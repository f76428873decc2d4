"""Asyrp (2210.10960): moves what the model draws along a direction in h-space, the bottleneck of its UNet."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...engine.span import Span
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import HDirectionSocket, checked_mask, hides_all
from .asyrp import Asyrp, asyrp_sampler
from .direction import as_direction, check_direction
from .edit import Edit, add_edit

MODES, APPLY_TO = ("asymmetric", "symmetric"), ("both", "cond")
STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}


class HSpaceEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_HSpaceEdit",
            display_name="H-Space Edit (Asyrp)",
            category="reins/h-space",
            description="Moves what the model draws along a direction in its bottleneck (h-space) and leaves the rest: "
            "larger, older, another colour. For euler, ddim and euler_ancestral; with other samplers the edit is "
            "symmetric, hence weaker, and the log says so.",
            search_aliases=["asyrp", "h-space", "hspace", "semantic direction", "attribute slider", "latent edit"],
            inputs=[
                model_input(),
                HDirectionSocket.Input("direction", tooltip="From one of the nodes for h-space directions."),
                strength_input(),
                *percent_inputs(end=0.6),
                make_input(
                    io.Combo, "mode", options=list(MODES), default=MODES[0],
                    tooltip="asymmetric: only the predicted picture is edited, not the direction back to the noise, as "
                    "in the paper. One more prediction per step. symmetric: h is edited in every prediction. The two "
                    "changes nearly cancel, so the edit is weak.",
                ),
                make_input(
                    io.Combo, "apply_to", options=list(APPLY_TO), default=APPLY_TO[0], advanced=True,
                    tooltip="both: the negative prompt's prediction is edited too. cond: the positive's alone: one row "
                    "less per step, and CFG multiplies the change.",
                ),
                relative_input(),
                make_input(
                    io.Mask, "mask", optional=True,
                    tooltip="Where h is edited, any size. h is coarse (8x8 for 512 pixels of SD1.5), so the mask is "
                    "coarse too.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, direction: Any, strength: float = 1.0, start_percent: float = 0.0,
        end_percent: float = 0.6, mode: str = MODES[0], apply_to: str = APPLY_TO[0], relative: bool = True,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        direction, mask = as_direction(direction), checked_mask(mask, "mask")
        check_direction(direction, model)
        if not strength or hides_all(mask, "mask", "H-Space Edit"):
            return io.NodeOutput(model)
        edit = Edit(
            direction=direction,
            strength=strength,
            span=Span(start_percent, end_percent),
            asymmetric=mode == MODES[0],
            both=apply_to == APPLY_TO[0],
            relative=relative,
            mask=mask,
        )
        return io.NodeOutput(add_edit(model, edit))


class AsyrpSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_AsyrpSampler",
            display_name="Asyrp Sampler",
            category="reins/h-space",
            description="The paper's own sampler: h is edited in the first part of the run, and noise is drawn anew in "
            "the last (quality boosting). Exact with any guidance on the model; two evaluations in each edited step.",
            search_aliases=["asyrp", "h-space", "hspace", "quality boosting", "semantic direction"],
            inputs=[
                HDirectionSocket.Input("direction", tooltip="From one of the nodes for h-space directions."),
                strength_input(),
                percent_input("edit_end_percent", 0.6, "Where in the run the editing stops. 1: at the end of the run."),
                percent_input(
                    "boost_start_percent", 0.8,
                    "From where in the run on noise is drawn anew, which mends textures that the edit has hurt.",
                ),
                make_input(
                    io.Float, "boost_eta", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How much of the noise is drawn anew there; 0: none.",
                ),
                relative_input(optional=True),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, direction: Any, strength: float = 1.0, edit_end_percent: float = 0.6, boost_start_percent: float = 0.8,
        boost_eta: float = 1.0, relative: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        edit = Edit(direction=as_direction(direction), strength=strength, span=Span(), relative=relative)
        return io.NodeOutput(asyrp_sampler(Asyrp(edit, edit_end_percent, boost_start_percent, boost_eta)))


def strength_input() -> io.Input:
    return make_input(
        io.Float, "strength", **STRENGTH,
        tooltip="How far h is moved; negative: the other way. 0 turns the edit off. The change grows with the number "
        "of edited steps.",
    )  # fmt: skip


def relative_input(optional: bool = False) -> io.Input:
    return make_input(
        io.Boolean, "relative", default=True, optional=optional,
        tooltip="On: the direction is given the length of h first, so that strengths carry over between directions and "
        "models; begin near 0.1. Off: strength times the direction as it is.",
    )  # fmt: skip


def percent_input(name: str, default: float, tooltip: str) -> io.Input:
    return make_input(io.Float, name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)
