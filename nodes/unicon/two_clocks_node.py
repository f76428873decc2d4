"""The official sampling of UniCon (2410.11439) with a noise level for the image and one for the condition."""

from __future__ import annotations

from comfy_api.latest import io

from ...models.unicon.two_clocks import EXAMPLE, parse_schedule
from ..inputs.schema import make_input, schema
from .two_clocks import METHODS, TwoClocks


class UniConSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConSampler",
            display_name="UniCon Sampler",
            category="reins/unicon",
            description="Samples a joint latent as the authors do: image and condition go through the run at their own "
            "pace, in segments if you like. For the model of UniCon Apply Joint.",
            search_aliases=["unicon sampler", "two clocks", "schedule"],
            inputs=[
                make_input(
                    io.Combo, "method", options=list(METHODS), default=METHODS[0],
                    tooltip="euler · euler_ancestral · ddim. The authors use euler_ancestral, and ddim for poses, "
                    "identity and coarse control.",
                ),
                make_input(
                    io.Float, "eta", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How much of the noise is drawn anew in each step of euler_ancestral and ddim; 0: none.",
                ),
                make_input(
                    io.String, "schedule", multiline=True, default=EXAMPLE, placeholder="x 0-1, y 0.3-1",
                    tooltip="From where to where in the run, 0 (noise) to 1 (finished): image x, condition y. "
                    "x 0-1, y 1-1 has the condition given, x 1-1, y 0-1 the image, x 0-1, y 0.3-1 is coarse control. "
                    "More segments after ; or on new lines.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, method: str = METHODS[0], eta: float = 1.0, schedule: str = EXAMPLE) -> io.NodeOutput:
        return io.NodeOutput(TwoClocks(method, eta, parse_schedule(schedule)))
