"""UniCon (2410.11439): a picture and its condition look at each other while one of them, or both, are sampled."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...engine.span import Span
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, schema
from ..inputs.sockets import UniConSocket, checked_latent, checked_prompt
from .apply import PartnerSettings, Strengths, add_partner
from .side_by_side import UniCon, checked_unicon

ROLES = ("condition", "image")
OTHERS_ON = ("image", "both")


class UniConApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConApply",
            display_name="UniCon Apply",
            category="reins/unicon",
            description="Samples a picture beside a given one: from depth, edges or a pose to an image, from an image "
            "to its depth, edges or pose, or with the person or the look of a photo. Several in a row add up.",
            search_aliases=["unicon", "depth to image", "image to depth", "identity", "appearance", "control"],
            inputs=[
                model_input(),
                UniConSocket.Input("unicon", tooltip="From Load UniCon."),
                make_input(
                    io.Latent, "partner",
                    tooltip="The given picture, VAE-encoded at the size that is sampled. One, or one for each picture "
                    "of the batch.",
                ),
                make_input(
                    io.Combo, "partner_role", options=list(ROLES), default=ROLES[0],
                    tooltip="What the given picture is. condition: an image is sampled. image: its condition is "
                    "sampled, so the sampler's prompt needs the trigger (UniCon Prompt).",
                ),
                make_input(
                    io.Conditioning, "partner_positive",
                    tooltip="The prompt of the given picture: for a condition UniCon Prompt with the image's text.",
                ),
                make_input(
                    io.Conditioning, "partner_negative", tooltip="Its negative prompt, usually that of the sampler.",
                ),
                *strength_inputs(),
                make_input(
                    io.Float, "partner_sigma", default=0.0413, min=0.0, max=1000.0, step=0.0001, round=0.0001,
                    advanced=True,
                    tooltip="The noise level of the given picture during the whole run. 0.0413: as good as clean, what "
                    "the authors use; higher: its details count less.",
                ),
                make_input(
                    io.Int, "partner_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                    advanced=True,
                    tooltip="Seed of the noise on the given picture. It matters only at a high partner_sigma.",
                ),
                guidance_input(),
                *percent_inputs(),
                others_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, unicon: UniCon, partner: dict[str, Any], partner_role: str, partner_positive: list,
        partner_negative: list, strength_x: float = 1.0, strength_y: float = 1.0, partner_sigma: float = 0.0413,
        partner_seed: int = 0, condition_guidance: float = 0.0, start_percent: float = 0.0, end_percent: float = 1.0,
        others_on: str = OTHERS_ON[0],
    ) -> io.NodeOutput:  # fmt: skip
        given = PartnerSettings(
            role=partner_role,
            latent=checked_latent(partner, "partner"),
            positive=checked_prompt(partner_positive, "partner_positive"),
            negative=checked_prompt(partner_negative, "partner_negative"),
            sigma=partner_sigma,
            seed=partner_seed,
            batch_index=partner.get("batch_index"),
            opens=others_on == "both",
            span=Span(start_percent, end_percent),
        )
        strengths = Strengths(strength_x, strength_y, condition_guidance)
        return io.NodeOutput(add_partner(model, checked_unicon(unicon), given, strengths))


def strength_inputs() -> list[io.Input]:
    return [
        make_input(
            io.Float, name, default=1.0, min=-10.0, max=10.0, step=0.01,
            tooltip=f"How much {who} sees of {whom}. The node is off if both strengths are 0.",
        )
        for name, who, whom in (
            ("strength_x", "the image", "the condition"),
            ("strength_y", "the condition", "the image"),
        )
    ]  # fmt: skip


def guidance_input() -> io.Input:
    return make_input(
        io.Float, "condition_guidance", default=0.0, min=-20.0, max=20.0, step=0.1,
        tooltip="Steers away from what would be sampled without seeing the partner; one more prediction per step. The "
        "authors use 2 for identity and 1 for appearance, 0 for depth, edges and poses.",
    )  # fmt: skip


def others_input() -> io.Input:
    return make_input(
        io.Combo, "others_on", options=list(OTHERS_ON), default=OTHERS_ON[0], optional=True, advanced=True,
        tooltip="Where other nodes act (IP-Adapter, PAG, ControlNeXt): on the image's branch alone, or on both.",
    )  # fmt: skip
