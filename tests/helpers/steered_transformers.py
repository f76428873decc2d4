"""Tiny transformers with an IP-Adapter on them, by the nodes and by hooks of torch, in each form of file.

What an encoder gives is drawn. The negative reads what it gives for nothing: zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.nodes.ip_adapter.prompt import ImageTokens, IPAdapter
from reins.tests.helpers.hooked_ip_adapters import Weight, instantx_flux_added, sd3_added, xlabs_added
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file
from reins.tests.helpers.transformers_by_hand import predict
from torch import Tensor


class Form(NamedTuple):
    """A form of file on a family of tiny_transformers, and the shape of what an encoder gives for a picture."""

    family: str
    make_file: Callable[..., dict[str, Tensor]]
    added: Callable[..., AbstractContextManager[None]]
    reads: tuple[int, ...]


FORMS: Mapping[str, Form] = {
    "sd3": Form("sd3", partial(sd3_file, layers=3), sd3_added, (7, 20)),
    "sd35m": Form("sd35m", partial(sd3_file, layers=5), sd3_added, (7, 20)),
    "xlabs": Form("flux", xlabs_file, xlabs_added, (12,)),
    "instantx": Form("flux", instantx_flux_file, instantx_flux_added, (12,)),
    "chroma": Form("chroma", instantx_flux_file, instantx_flux_added, (12,)),
}
MAIN = ("sd3", "xlabs", "instantx")
NOTHING = -1  # in place of the seed of a picture


def family_of(form: str) -> str:
    """The family of tiny_transformers that a form is for."""
    return FORMS[form].family


@cache
def file_of(form: str, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a drawn file."""
    return FORMS[form].make_file(seed=seed)


def read(form: str, *pictures: int) -> Tensor:
    """What an encoder gives for pictures, (pictures, ...), each by its seed."""
    shape = FORMS[form].reads
    drawn = [
        torch.zeros(shape) if seed == NOTHING else torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for seed in pictures
    ]
    return torch.stack(drawn)


@cache
def adapter(form: str, seed: int = 0) -> IPAdapter:
    """A drawn adapter as the loader makes it."""
    return make_ip_adapter(file_of(form, seed), f"{form}{seed}.safetensors")


def tokens(form: str, *pictures: int, file: int = 0, **settings: object) -> ImageTokens:
    """What IP-Adapter Encode makes of pictures."""
    found = read(form, *pictures or (4,))
    return IPAdapterEncode.execute(adapter(form, file), clip_vision_output=found, **settings).result[0]


def apply(
    form: str, model: ModelPatcher, *pictures: int, file: int = 0, weight: float = 1.0,
    encode: Mapping[str, object] | None = None, **settings: object,
) -> ModelPatcher:  # fmt: skip
    """The Apply node on pictures, by default on one."""
    made = tokens(form, *pictures, file=file, **(encode or {}))
    return IPAdapterApply.execute(model, adapter(form, file), made, weight, **settings).result[0]


def added(
    form: str, model: ModelPatcher, *pictures: int, file: int = 0, weight: Weight = 1.0
) -> AbstractContextManager[None]:  # fmt: skip
    """Inside the block of Python the network has the adapter by the formula: one picture, or one for each row."""
    return FORMS[form].added(model, file_of(form, file), read(form, *pictures or (4,)), weight)


def begun(form: str, h: int = 8, w: int = 12, batch: int = 1) -> tuple[str, ModelPatcher, Tensor]:
    """The family, a tiny model of it, and seeded noise in the shape of its latents."""
    family = family_of(form)
    return family, MODELS[family](), noise_like(latent(family, h, w, batch))


def by_formula(
    form: str, model: ModelPatcher, x: Tensor, prompt: list, *pictures: int, file: int = 0, weight: Weight = 1.0
) -> Tensor:  # fmt: skip
    """What a model with the adapter by hooks makes of pure noise x in one step, for one prompt at cfg 1."""
    with added(form, model, *pictures, file=file, weight=weight):
        return predict(family_of(form), model, x, prompt)
