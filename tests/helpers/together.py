"""All that a graph may hold at once, the pack's methods and the host's own, as ingredients of one recipe.

A recipe is a list of names. Each ingredient changes the model, the prompts, or both, as its nodes do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.lora
import comfy.model_base
import comfy.ops
import comfy.supported_models
import torch
from comfy.controlnet import ControlBase
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.t2i_adapter.adapter import Adapter
from reins.tests.helpers import controlnext, h_space, ip_adapter, prompt_diffusion, tiny_models, unclip, unicon
from reins.tests.helpers.methods import pag, sag, seg
from torch import Tensor

from nodes import ControlNetApplyAdvanced, unCLIPConditioning  # the host's

SIZES = {"sd15": (8, 8), "four": (16, 16), "adm": (8, 8)}  # of the latent
H_CHANNELS = {"sd15": 64, "four": 32, "adm": 64}
EMBEDS = 1280  # of the image that SDXL takes in the place of its pooled text
Prompts = dict[str, list]
FOUR = {
    "channel_mult": [1, 1, 1, 1], "num_res_blocks": [2] * 4, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip


class Ingredient(NamedTuple):
    """What one name in a recipe changes: the model, the prompts, or both."""

    model: Callable[[ModelPatcher, str], ModelPatcher] = lambda model, layout: model
    prompts: Callable[[Prompts, str], Prompts] = lambda prompts, layout: prompts


@cache
def model_of(layout: str) -> ModelPatcher:
    """sd15: as everywhere; four: with the four levels that a T2I-Adapter needs; adm: an SDXL that takes unCLIP's."""
    if layout == "adm":
        unet = tiny_models.unet_config(
            **{**tiny_models.SDXL, "adm_in_channels": EMBEDS + 6 * 256, "dtype": torch.float64}
        )
        return tiny_models.patcher_of(comfy.supported_models.SDXL, comfy.model_base.SDXL, unet, ModelType.EPS, 0)
    return tiny_models.sd15(dtype=torch.float64, **(FOUR if layout == "four" else {}))


@cache
def control_of(layout: str) -> comfy.controlnet.ControlNet:
    """A drawn ControlNet of the host for a layout."""
    unet = model_of(layout).model.model_config.unet_config
    config = {key: value for key, value in unet.items() if key not in prompt_diffusion.NOT_OF_A_CONTROLNET}
    network = comfy.cldm.cldm.ControlNet(
        **{**config, "hint_channels": 3, "device": tiny_models.CPU}, operations=comfy.ops.disable_weight_init
    )
    tiny_models.randomise(network.float(), 3)
    network.to(torch.float64).eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(network, load_device=tiny_models.CPU)


@cache
def t2i_adapter() -> comfy.controlnet.T2IAdapter:
    """A drawn T2I-Adapter of the host for the layout with four levels."""
    network = Adapter(channels=[32] * 4, nums_rb=1, cin=3 * 64, ksize=1, sk=True, use_conv=False, xl=False)
    tiny_models.randomise(network, 3)
    return comfy.controlnet.T2IAdapter(
        network.eval().requires_grad_(False), 3, 8, "nearest-exact", device=tiny_models.CPU
    )


@cache
def prompt_diffusion_of(layout: str) -> ControlBase:
    """A drawn Prompt Diffusion with an example for a layout."""
    return prompt_diffusion.control(model_of(layout))


def controlled(prompts: Prompts, control: ControlBase, image: Tensor, strength: float = 0.5) -> Prompts:
    """By the host's Apply ControlNet (Advanced), which chains it behind the earlier ones."""
    both = ControlNetApplyAdvanced().apply_controlnet(
        prompts["positive"], prompts["negative"], control, image, strength, 0.0, 1.0
    )
    return dict(zip(("positive", "negative"), both, strict=True))


def with_image(prompts: Prompts, layout: str) -> Prompts:
    """The host's unCLIPConditioning on the positive."""
    generator = torch.Generator().manual_seed(8)
    image = unclip.embeds(torch.randn((1, EMBEDS), generator=generator))
    (positive,) = unCLIPConditioning().apply_adm(prompts["positive"], image, 1.0, 0.0)
    return {**prompts, "positive": positive}


def lora_weights(model: ModelPatcher, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA for some projections of the middle and of the way up."""
    generator, content = torch.Generator().manual_seed(seed), {}
    for key, value in model.model.diffusion_model.state_dict().items():
        if key.endswith("attn2.to_out.0.weight") or key.endswith("attn1.to_v.weight"):
            stem = f"diffusion_model.{key.removesuffix('.weight')}"
            content[f"{stem}.lora_up.weight"] = torch.randn((value.shape[0], 2), generator=generator)
            content[f"{stem}.lora_down.weight"] = 0.1 * torch.randn((2, value.shape[1]), generator=generator)
    return content


def with_lora(model: ModelPatcher, layout: str) -> ModelPatcher:
    """The model with a drawn LoRA."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    model = model.clone()
    model.add_patches(comfy.lora.load_lora(lora_weights(model), keys), 0.7)
    return model


def hooked(prompts: Prompts, layout: str) -> Prompts:
    """Another LoRA on the positive alone, as the host's hooks bring it."""
    group = comfy.hooks.create_hook_lora(lora_weights(model_of(layout), 1), 0.7, 0.0)
    return {**prompts, "positive": [[text, {**said, "hooks": group}] for text, said in prompts["positive"]]}


def in_areas(prompts: Prompts, layout: str) -> Prompts:
    """The positive for the left part, and another text for the right one."""
    h, w = SIZES[layout]
    (text, said), *rest = prompts["positive"]
    other = base_prompts(layout, 11, 2)["positive"][0][0]
    left = [text, {**said, "area": (h, w // 2 + 1, 0, 0)}]
    return {**prompts, "positive": [left, [other, {**said, "area": (h, w // 2 + 1, 0, w // 2 - 1)}], *rest]}


INGREDIENTS: dict[str, Ingredient] = {
    "control net": Ingredient(
        prompts=lambda prompts, layout: controlled(prompts, control_of(layout), controlnext.picture(4))
    ),
    "t2i adapter": Ingredient(
        prompts=lambda prompts, layout: controlled(prompts, t2i_adapter(), controlnext.picture(5))
    ),
    "unclip": Ingredient(prompts=with_image),
    "lora": Ingredient(with_lora),
    "hooks": Ingredient(prompts=hooked),
    "areas": Ingredient(prompts=in_areas),
    "pag": Ingredient(lambda model, layout: pag(model)),
    "seg": Ingredient(lambda model, layout: seg(model)),
    "sag": Ingredient(lambda model, layout: sag(model)),
    "ip-adapter": Ingredient(lambda model, layout: ip_adapter.apply(model)),
    "controlnext": Ingredient(lambda model, layout: controlnext.apply(model)),
    "unicon": Ingredient(lambda model, layout: unicon.beside(model, SIZES[layout])),
    "prompt diffusion": Ingredient(
        prompts=lambda prompts, layout: controlled(prompts, prompt_diffusion_of(layout), controlnext.picture(30), 1.0)
    ),
    "h-edit": Ingredient(lambda model, layout: h_space.edit(model, h_space.stored(channels=H_CHANNELS[layout]))),
}
ONLY = {"t2i adapter": {"four"}, "unclip": {"adm"}, "prompt diffusion": {"sd15", "four"}, "unicon": {"sd15", "four"}}
NEVER = [{"unicon", "areas"}]  # refused in plain words: a partner is a whole picture


def layout_for(names: Sequence[str]) -> str | None:
    """The first layout that all of them have files for; None where there is none, or they exclude each other."""
    if any(pair <= set(names) for pair in NEVER):
        return None
    fits = (layout for layout in ("sd15", "four", "adm") if all(layout in ONLY.get(name, {layout}) for name in names))
    return next(fits, None)


def base_prompts(layout: str, positive: int = 1, negative: int = 2) -> Prompts:
    """A prompt and a negative of seeded texts, pooled as wide as the layout of SDXL needs."""

    def say(seed: int) -> list:
        pooled = torch.randn((1, EMBEDS), generator=torch.Generator().manual_seed(seed))
        return [[tiny_models.text(seed)[0][0], {"pooled_output": pooled}]]

    return {"positive": say(positive), "negative": say(negative)}


def sample(names: Sequence[str], layout: str, cfg: float = 5.0, batch: int = 1, steps: int = 2) -> Tensor:
    """A run of the host's KSampler with these ingredients, in this order."""
    model, prompts = model_of(layout), base_prompts(layout)
    for name in names:
        model, prompts = INGREDIENTS[name].model(model, layout), INGREDIENTS[name].prompts(prompts, layout)
    return tiny_models.sample(model, SIZES[layout], batch=batch, cfg=cfg, steps=steps, **prompts)
