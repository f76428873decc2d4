"""UniCon (2410.11439) with both branches sampled: a latent of two halves, the model for it, and the way back."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..inputs.schema import make_input, model_input, model_output, schema
from ..inputs.sockets import UniConSocket, checked_latent, checked_prompt
from .apply import Halves, Strengths, add_halves
from .apply_node import OTHERS_ON, guidance_input, others_input, strength_inputs
from .latents import NOISE_KEY, join, split
from .side_by_side import UniCon, checked_unicon


class UniConJointLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConJointLatent",
            display_name="UniCon Joint Latent",
            category="reins/unicon",
            description="A latent of images and the same number of conditions, for UniCon Apply Joint. Either half may "
            "be given. A noise mask on a half keeps what it does not cover.",
            search_aliases=["unicon latent", "empty latent", "joint latent"],
            inputs=[
                make_input(
                    io.Latent, "image", optional=True,
                    tooltip="Images to begin with or to keep in part (noise mask). None: from noise.",
                ),
                make_input(
                    io.Latent, "condition", optional=True,
                    tooltip="Conditions to follow coarsely (condition_noise below 1) or to keep in part (noise mask). "
                    "None: from noise.",
                ),
                *(
                    make_input(
                        io.Int, name, default=512, min=16, max=16384, step=8,
                        tooltip=f"{name.capitalize()} of both in pixels, if neither image nor condition is given.",
                    )
                    for name in ("width", "height")
                ),
                make_input(
                    io.Int, "batch_size", default=1, min=1, max=4096,
                    tooltip="How many pairs. Given latents raise it to the number of pictures that they hold.",
                ),
                _noise_input("It goes with the latent: connect the latent to UniCon Apply Joint as well."),
            ],
            outputs=[io.Latent.Output(tooltip="Images, then conditions: for the sampler and UniCon Split Latent.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: dict[str, Any] | None = None, condition: dict[str, Any] | None = None, width: int = 512,
        height: int = 512, batch_size: int = 1, condition_noise: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        given = [
            None if latent is None else (checked_latent(latent, name), latent.get("noise_mask"))
            for name, latent in (("image", image), ("condition", condition))
        ]
        if condition is None and condition_noise < 1:
            raise ValueError(
                f"condition_noise {condition_noise:g} leaves a part of the condition, but there is none. Connect a "
                f"condition, or set condition_noise to 1."
            )
        return io.NodeOutput({**join(*given, (width, height), batch_size), NOISE_KEY: condition_noise})


class UniConApplyJoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConApplyJoint",
            display_name="UniCon Apply Joint",
            category="reins/unicon",
            description="Samples images together with their conditions, from a latent of both (UniCon Joint Latent): "
            "both from noise, or the image along a roughly given condition.",
            search_aliases=["unicon", "joint generation", "coarse control", "depth and image"],
            inputs=[
                model_input(),
                UniConSocket.Input("unicon", tooltip="From Load UniCon."),
                make_input(
                    io.Conditioning, "condition_positive",
                    tooltip="The prompt of the conditions: UniCon Prompt with the text of the images.",
                ),
                make_input(
                    io.Conditioning, "condition_negative", tooltip="Their negative prompt, usually the sampler's.",
                ),
                *strength_inputs(),
                _noise_input("With UniCon Sampler leave it at 1, because the schedule sets the noise."),
                guidance_input(),
                others_input(),
                make_input(
                    io.Latent, "latent", optional=True,
                    tooltip="From UniCon Joint Latent: its condition_noise is then used instead of the one here.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, unicon: UniCon, condition_positive: list, condition_negative: list,
        strength_x: float = 1.0, strength_y: float = 1.0, condition_noise: float = 1.0,
        condition_guidance: float = 0.0, others_on: str = OTHERS_ON[0], latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        halves = Halves(
            positive=checked_prompt(condition_positive, "condition_positive"),
            negative=checked_prompt(condition_negative, "condition_negative"),
            condition_noise=condition_noise if latent is None else latent.get(NOISE_KEY, condition_noise),
            opens=others_on == "both",
        )
        strengths = Strengths(strength_x, strength_y, condition_guidance)
        return io.NodeOutput(add_halves(model, checked_unicon(unicon), halves, strengths))


class UniConSplit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConSplit",
            display_name="UniCon Split Latent",
            category="reins/unicon",
            description="Images and conditions of a joint latent, each for a VAE Decode of its own.",
            search_aliases=["unicon split", "joint latent"],
            inputs=[make_input(io.Latent, "latent", tooltip="What was sampled from a UniCon Joint Latent.")],
            outputs=[
                io.Latent.Output(display_name="image", tooltip="The images."),
                io.Latent.Output(display_name="condition", tooltip="Their conditions, in the same order."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, latent: dict[str, Any]) -> io.NodeOutput:
        samples = checked_latent(latent, "latent")
        if len(samples) % 2:
            raise ValueError(
                f"latent should hold images and the same number of conditions, but has {len(samples)} rows. Connect "
                f"what was sampled from a UniCon Joint Latent."
            )
        kept = {key: value for key, value in latent.items() if key != NOISE_KEY}
        return io.NodeOutput(*split(kept))


def _noise_input(more: str) -> io.Input:
    return make_input(
        io.Float, "condition_noise", default=1.0, min=0.0, max=1.0, step=0.01,
        tooltip=f"How much of the condition is noise at the start. 1: all of it. 0.7: coarse control. {more}",
    )  # fmt: skip
