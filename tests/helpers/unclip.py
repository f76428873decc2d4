"""Tiny real unCLIP, SDXL and Stable Cascade of the host, what its image encoder says, and tiny CLIP text encoders."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import comfy.model_base
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import execution
import torch
from comfy.clip_vision import Output
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import ip_adapter, tiny_models
from torch import Tensor

import nodes

WIDTH = ip_adapter.EMBEDS  # of image and text embeddings
TEXT = {
    "hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48,
    "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407, "model_type": "clip_text_model",
}  # fmt: skip


def encoded(seed: int = 0, b: int = 1, **changes: object) -> Output:
    """What the host's image encoder says of seeded pictures."""
    return ip_adapter.encoder(**changes).encode_image(ip_adapter.picture(seed, b))


def embeds(values: Tensor, **parts: object) -> Output:
    """A CLIP_VISION_OUTPUT with nothing else in it than is given."""
    made = Output()
    made["image_embeds"] = values
    for name, value in parts.items():
        made[name] = value
    return made


def sd21(seed: int = 0) -> ModelPatcher:
    """The host's SD21UNCLIP with a tiny UNet, for embeddings as wide as `encoded` gives."""
    unet = tiny_models.unet_config(
        use_linear_in_transformer=True, num_heads=-1, num_head_channels=16, num_classes="sequential",
        adm_in_channels=2 * WIDTH,
    )  # fmt: skip
    schedule = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    augmentation = {"noise_schedule_config": schedule, "timestep_dim": WIDTH}

    def base(config: object, kind: ModelType, device: torch.device) -> comfy.model_base.SD21UNCLIP:
        return comfy.model_base.SD21UNCLIP(config, augmentation, kind, device=device)

    return tiny_models.patcher_of(comfy.supported_models.SD21UnclipL, base, unet, ModelType.V_PREDICTION, seed)


def cascade() -> comfy.model_base.StableCascade_C:
    """A Stable Cascade without its network, which reading conditioning does not need."""
    return comfy.model_base.StableCascade_C.__new__(comfy.model_base.StableCascade_C)


def conditioned(output: Output, conditioning: list | None = None, **settings: float) -> list:
    """What the stock unCLIPConditioning makes of the output."""
    settings = {"strength": 1.0, "noise_augmentation": 0.0, **settings}
    return nodes.unCLIPConditioning().apply_adm(conditioning or tiny_models.text(1), output, **settings)[0]


def adm(model: ModelPatcher, conditioning: list) -> Tensor:
    """The vector that the host gives the UNet beside the text."""
    return model.model.encode_adm(device=tiny_models.CPU, seed=10, width=64, height=64, **conditioning[0][1])


def executed(node: type, inputs: Mapping[str, list]) -> list:
    """The values of a node's first output as the host's execution hands them to the next node; inputs are lists too."""
    output, *_ = asyncio.run(execution.get_output_data("prompt", "1", node, dict(inputs)))
    return output[0]


def _tiny(clip: type, **settings: object) -> type:
    """A text encoder class of the host with a tiny config, read from a file as older hosts want it."""

    class Tiny(clip):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.json"
                path.write_text(json.dumps(TEXT), encoding="utf-8")
                super().__init__(
                    device=device, dtype=dtype, model_options=model_options or {}, textmodel_json_config=str(path),
                    **settings,
                )  # fmt: skip

    return Tiny


@cache
def _text_weights() -> Mapping[str, Tensor]:
    inside = _tiny(comfy.sd1_clip.SDClipModel)(dtype=torch.float32)
    return dict(ip_adapter.fill(inside.transformer.requires_grad_(False), 3).state_dict())


@cache
def _tokenizer() -> comfy.sd1_clip.SD1Tokenizer:
    return comfy.sd1_clip.SD1Tokenizer()


def text_encoder(
    change: Callable[[Tensor], Tensor] = lambda projection: projection, host_projects: bool = True
) -> comfy.sd.CLIP:  # fmt: skip
    """The host's CLIP with a tiny text encoder; `change` is made to its projection.

    The host leaves the pooled output of CLIP-L as it is before the projection, and projects that of all others.
    """

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            inside = _tiny(comfy.sd1_clip.SDClipModel, return_projected_pooled=host_projects)
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=inside)

    target = comfy.supported_models_base.ClipTarget(lambda **_: _tokenizer(), Model)
    clip = comfy.sd.CLIP(target, embedding_directory=None, model_options={"dtype": torch.float32})
    weights = {name: value.clone() for name, value in _text_weights().items()}
    weights["text_projection.weight"] = change(weights["text_projection.weight"])
    clip.cond_stage_model.clip_l.transformer.load_state_dict(weights)
    return clip


def projected(clip: comfy.sd.CLIP, text: str) -> Tensor:
    """(1, c): the end token of a text after the final norm, times the projection; straight from the network."""
    network = clip.cond_stage_model.clip_l.transformer
    tokens = torch.tensor([[token for token, _ in clip.tokenize(text)["l"][0]]])
    end = tokens[0].tolist().index(49407) + 1
    return network.text_model(tokens, num_tokens=[end])[2] @ network.text_projection.weight.T
