"""Small Prompt Diffusion files for the tiny SD1.5, seeded, and the host's own Apply nodes."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.ops
import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from reins.models.prompt_diffusion.files import ORIGINAL, ControlPart
from reins.models.prompt_diffusion.network import Stems
from reins.nodes.prompt_diffusion.control import PromptDiffusion
from reins.nodes.prompt_diffusion.load import make_prompt_diffusion
from reins.nodes.prompt_diffusion.nodes import PromptDiffusionExample
from reins.tests.helpers import controlnext, tiny_models
from torch import Tensor

from nodes import ControlNetApplyAdvanced  # the host's

NOT_OF_A_CONTROLNET = ("out_channels", "transformer_depth_output", "use_temporal_attention", "use_temporal_resblock")
LOUD = 6.0  # times what is drawn, for the convolutions that go into the model


def network(model: ModelPatcher | None = None) -> comfy.cldm.cldm.ControlNet:
    """The host's ControlNet with two stems, for a tiny model; without weights."""
    unet = tiny_models.unet_config() if model is None else model.model.model_config.unet_config
    config = {key: value for key, value in unet.items() if key not in NOT_OF_A_CONTROLNET}
    config |= {"hint_channels": 9, "device": torch.device("meta"), "dtype": torch.float32}
    made = comfy.cldm.cldm.ControlNet(**config, operations=comfy.ops.disable_weight_init)
    made.input_hint_block = Stems(made.model_channels, comfy.ops.disable_weight_init, device=torch.device("meta"))
    return made


def file_for(model: ModelPatcher | None = None, seed: int = 0) -> dict[str, Tensor]:
    """The control part by the original's names; loud enough that the example shows in the result."""
    names = ControlPart({}, ORIGINAL)
    drawn = {names.own_name(key): value for key, value in controlnext.weights(network(model), seed).items()}
    loud = ("zero_convs.", "middle_block_out.", "input_hint_block.14.", "input_cond_block.14.")
    return {key: value * (LOUD if key.startswith(loud) else 1.0) for key, value in drawn.items()}


def loaded(
    model: ModelPatcher | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PromptDiffusion:  # fmt: skip
    """As the loader makes it, in double precision: there is no example yet."""
    control = make_prompt_diffusion(file_for(model, seed), "tiny prompt diffusion")
    control.control_model.to(dtype)
    control.control_model.dtype = dtype
    return control


def example(control: PromptDiffusion, seed: int = 0, drop: bool = False, **settings: object) -> PromptDiffusion:
    """The Example node with soft drawn pictures."""
    pair = (
        settings.pop("source", controlnext.picture(seed + 10)),
        settings.pop("target", controlnext.picture(seed + 20)),
    )
    return PromptDiffusionExample.execute(control, *pair, drop=drop, **settings).result[0]


def control(
    model: ModelPatcher | None = None, seed: int = 0, drop: bool = False, dtype: torch.dtype = torch.float64
) -> PromptDiffusion:  # fmt: skip
    """With an example, for the host's Apply nodes."""
    return example(loaded(model, seed, dtype), seed, drop)


def apply(
    positive: list | None = None, negative: list | None = None, control_net: ControlBase | None = None,
    image: Tensor | None = None, strength: float = 1.0, start: float = 0.0, end: float = 1.0,
) -> dict[str, list]:  # fmt: skip
    """The host's Apply ControlNet; the result is for `tiny_models.sample`."""
    positive = tiny_models.text(1) if positive is None else positive
    negative = tiny_models.text(2) if negative is None else negative
    both = ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control() if control_net is None else control_net,
        controlnext.picture(30) if image is None else image, strength, start, end,
    )  # fmt: skip
    return dict(zip(("positive", "negative"), both, strict=True))
