"""AutoGuidance (2406.02507): guidance by a weaker model."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy_api.latest import io

from ..patches.span import Span
from ..patches.weak_model import add_weak_model
from .schema import make_input, model_input, model_output, percent_inputs, scale_input, schema


class WeakModelGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_WeakModelGuidance",
            display_name="Weak Model Guidance (AutoGuidance)",
            category="reins/guidance",
            description="Steers away from what a weaker model makes of the same prompt: a smaller or less trained one, "
            "or the same without a LoRA or quantised (AutoGuidance). One evaluation of the weak model per step.",
            search_aliases=["autoguidance", "weak model", "bad version of itself", "guidance"],
            inputs=[
                model_input(),
                make_input(
                    io.Model, "weak_model",
                    tooltip="The weaker model, for the same kind of latents, with its own LoRA and patches.",
                ),
                scale_input(2.0), *percent_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, weak_model: ModelPatcher, scale: float, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        _check(model, weak_model)
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_weak_model(model, weak_model, scale, Span(start_percent, end_percent)))


def _check(model: ModelPatcher, weak: ModelPatcher) -> None:
    """ValueError where the two models do not speak of the same latents, noise or text."""
    found, wanted = (type(patcher.model.latent_format).__name__ for patcher in (weak, model))
    if found != wanted:
        raise ValueError(
            f"weak_model should take the same latents as model ({wanted}), but takes {found}. Choose a weaker model of "
            f"the same family."
        )
    flows = [isinstance(patcher.get_model_object("model_sampling"), CONST) for patcher in (weak, model)]
    if flows[0] != flows[1]:
        raise ValueError(
            "weak_model and model should be noised in the same way, but one is a flow model and the other is not. "
            "Choose a weaker model of the same family."
        )
    channels = [patcher.model.model_config.unet_config.get("in_channels") for patcher in (weak, model)]
    if channels[0] != channels[1]:
        raise ValueError(
            f"weak_model should take {channels[1]} channels, as model does, but takes {channels[0]}: one of the two is "
            f"for inpainting. Choose a weaker model of the same kind."
        )
    widths = [patcher.model.model_config.unet_config.get("context_dim") for patcher in (weak, model)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"weak_model should read a text of {widths[1]} numbers per token, as model does, but reads {widths[0]}. "
            f"Choose a weaker model of the same family."
        )
