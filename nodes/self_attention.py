"""Self-Attention Guidance (2210.00939)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.self_attention import kernel_length
from ..patches.self_attention import Settings, add_self_attention_guidance
from ..patches.sites import find_sites
from ..patches.span import Span
from .schema import make_input, model_input, model_output, percent_inputs, scale_input, schema


class SelfAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SelfAttentionGuidance",
            display_name="Self-Attention Guidance (SAG)",
            category="reins/guidance",
            description="Brings out detail where the model looks: blurs the attended places, predicts again and steers "
            "away from that (SAG). One more evaluation per step, in a second call.",
            search_aliases=["SAG", "self attention guidance", "guidance", "detail"],
            inputs=[
                model_input(), scale_input(0.75, minimum=-2.0, maximum=5.0),
                make_input(
                    io.Float, "blur_sigma", default=1.0, min=0.0, max=10.0, step=0.1,
                    tooltip="Width of the blur in cells of the latent (8 pixels each). 0: no blur, hence no guidance.",
                ),
                make_input(
                    io.Float, "threshold", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How attended a place must be to be blurred: 1 is the average, higher blurs less of the "
                    "picture, 0 all of it.",
                ),
                *percent_inputs(),
                make_input(
                    io.Int, "kernel_size", default=0, min=0, max=63, advanced=True,
                    tooltip="Length of the blur kernel in cells; even numbers count as the next odd one. 0: long "
                    "enough for the whole Gaussian. 9: what ComfyUI's own SAG node and diffusers use.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, blur_sigma: float, threshold: float, start_percent: float,
        end_percent: float, kernel_size: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        site = next((site for site in find_sites(model, "attn1") if site.block == "middle"), None)
        if site is None:
            raise ValueError(
                "Self-Attention Guidance reads the self-attention of the UNet's middle block, but this model has none "
                "there. Use Perturbed-Attention Guidance with another layer instead."
            )
        if scale == 0 or blur_sigma == 0 or kernel_length(blur_sigma, kernel_size) == 1:
            return io.NodeOutput(model)
        settings = Settings(scale, blur_sigma, threshold, kernel_size, Span(start_percent, end_percent))
        return io.NodeOutput(add_self_attention_guidance(model, site, settings))
