"""Directions in h-space (Asyrp, 2210.10960) from two prompts, at each step or captured over some pictures."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...engine.unet import unet_of
from ..inputs.schema import make_input, schema
from ..inputs.sockets import HDirectionSocket, checked_latent, checked_prompt
from .capture import CaptureRequest, capture_component, capture_difference
from .direction import REASON, PromptDirection

METHODS = ("mean difference", "principal component")


class HDirectionFromPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_HDirectionFromPrompts",
            display_name="Prompts to H-Space Direction",
            category="reins/h-space",
            description="The difference between two prompts in the model's bottleneck, found anew at each step for the "
            "picture that is being drawn. Needs no file; two rows more per step.",
            search_aliases=["h-space", "asyrp", "prompt difference", "direction"],
            inputs=[
                _positive("The prompt that is sampled. What it carries besides the text (sizes of SDXL and the like) "
                          "is used for source and target too."),
                *_two_prompts(),
            ],
            outputs=[direction_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive: list, source: list, target: list) -> io.NodeOutput:
        return io.NodeOutput(_from_prompts(positive, source, target))


class HDirectionCapture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_HDirectionCapture",
            display_name="Capture H-Space Direction",
            category="reins/h-space",
            description="Samples some pictures and keeps how two prompts differ in the model's bottleneck at each "
            "noise level, as a direction to use and to save. Or keeps how the pictures differ from each other.",
            search_aliases=["h-space", "asyrp", "capture direction", "PCA", "principal component"],
            inputs=[
                make_input(io.Model, "model", tooltip="The model that the direction is for, with its LoRA."),
                _positive("The prompt of the pictures, such as: a portrait. The direction works best on the like."),
                *_two_prompts(optional=True),
                io.Latent.Input("latent", tooltip="An empty latent of the size that will be drawn."),
                make_input(
                    io.Int, "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Seed of the first picture. The others have the following seeds.",
                ),
                make_input(
                    io.Int, "steps", default=20, min=1, max=1000,
                    tooltip="Steps of each picture. One direction is kept for each step. Between the steps it is "
                    "mixed.",
                ),
                make_input(
                    io.Int, "samples", default=4, min=1, max=1000,
                    tooltip="How many pictures. More make the direction cleaner. A principal component needs 8 or "
                    "more.",
                ),
                make_input(
                    io.Boolean, "pool", default=False, advanced=True,
                    tooltip="On: one value per channel for the whole picture, so that nothing of the pictures' layout "
                    "is in it. Advised for SDXL.",
                ),
                make_input(
                    io.Combo, "method", optional=True, options=list(METHODS), default=METHODS[0], advanced=True,
                    tooltip="mean difference: between target and source. principal component: how the pictures differ "
                    "from each other, without prompts; its length is one standard deviation.",
                ),
                make_input(
                    io.Int, "component", optional=True, default=1, min=1, max=999, advanced=True,
                    tooltip="Which principal component, the strongest first.",
                ),
            ],
            outputs=[direction_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, positive: list, latent: dict, seed: int, steps: int, source: list | None = None,
        target: list | None = None, samples: int = 4, pool: bool = False, method: str = METHODS[0], component: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        unet_of(model, REASON)
        checked_latent(latent, "latent")
        request = CaptureRequest(_checked_positive(positive), latent, seed, steps, samples, pool)
        if method == METHODS[1]:
            pictures = samples * len(latent["samples"])
            if not component < pictures:
                raise ValueError(
                    f"{pictures} pictures have {pictures - 1} principal components, but component is {component}. "
                    f"Raise samples."
                )
            return io.NodeOutput(capture_component(model, request, component))
        if source is None or target is None:
            raise ValueError(
                "A mean difference needs the prompts source and target, but one is missing. Connect both, or set "
                "method to principal component."
            )
        return io.NodeOutput(capture_difference(model, request, _from_prompts(positive, source, target)))


def _from_prompts(positive: Any, source: Any, target: Any) -> PromptDirection:
    for name, prompt in (("source", source), ("target", target)):
        checked_prompt(prompt, name)
    return PromptDirection("from prompts", _checked_positive(positive), source, target, uuid4(), uuid4())


def _checked_positive(positive: Any) -> list:
    if not isinstance(positive, list) or not positive:
        raise ValueError("positive should be a prompt, but holds none. Connect the one that is sampled.")
    return positive


def _positive(tooltip: str) -> io.Input:
    return io.Conditioning.Input("positive", tooltip=tooltip)


def _two_prompts(optional: bool = False) -> list[io.Input]:
    texts = {
        "source": "What the direction leads away from, like: a face.",
        "target": "Where it leads to, like: a smiling face. Change one thing only.",
    }
    return [io.Conditioning.Input(name, tooltip=text, optional=optional) for name, text in texts.items()]


def direction_output() -> io.Output:
    return HDirectionSocket.Output(tooltip="For H-Space Edit and Asyrp Sampler.")
