"""Small UniCon files for the tiny models, seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import block_names, unet_of
from reins.models.unicon.files import SETS, parse_unicon
from reins.models.unicon.network import Post
from reins.nodes.unicon.apply_node import UniConApply
from reins.nodes.unicon.joint_node import UniConApplyJoint, UniConJointLatent, UniConSplit
from reins.nodes.unicon.load import make_unicon
from reins.nodes.unicon.side_by_side import UniCon
from reins.tests.helpers import tiny_models
from torch import Tensor

RANK = 2
GOLDEN_UNET = {  # of the stored results
    "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [1, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 0, 0], "context_dim": 32, "num_heads": 4,
}  # fmt: skip


def file_for(
    model: ModelPatcher, seed: int = 0, post: Post = "conv_fuse", condition: bool = True, skipped: Sequence[str] = (),
    size: float = 1.0, rank: int = RANK,
) -> dict[str, Tensor]:  # fmt: skip
    """A model.pth for a model: every tensor random and not zero; without the blocks whose name begins as `skipped`."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def draw(key: str, *shape: int) -> None:
        found[key] = size * torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    for name, block in block_names(unet_of(model)).items():
        if name.startswith(tuple(skipped)):
            continue
        width = block.width * (2 if post == "conv_fuse" else 1)
        draw(f"{name}.conv1n.weight", width, width)
        wanted = [("attn1n", of_set, block.width) for of_set in SETS[:2]]
        wanted += [("attn1", SETS[2], block.width), ("attn2", SETS[2], block.context)] if condition else []
        for attention, of_set, context in wanted:
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                inputs = context if projection in ("to_k", "to_v") else block.width
                draw(f"{name}.{attention}.{projection}.lora_A.{of_set}.weight", rank, inputs)
                draw(f"{name}.{attention}.{projection}.lora_B.{of_set}.weight", block.width, rank)
    return found


def unicon(model: ModelPatcher, seed: int = 0, weights: Mapping[str, Tensor] | None = None, **file: object) -> UniCon:
    """A file of these weights, or a drawn one, as the loader makes it."""
    found = file_for(model, seed, **file) if weights is None else weights
    return make_unicon(parse_unicon(found, "tiny unicon"), "tiny unicon", "depth_map, ")


def latent(size: tuple[int, int] = (16, 16), b: int = 1, seed: int = 21) -> dict[str, Tensor]:
    """A partner: a seeded latent (b, 4, h, w) with the size of a picture's."""
    return {"samples": 3 * tiny_models.noise(*size, b=b, seed=seed)}


def apply_file(model: ModelPatcher, file: UniCon) -> ModelPatcher:
    """The Apply node with this file and a drawn partner."""
    return UniConApply.execute(model, file, latent(), "condition", tiny_models.text(31), tiny_models.text(41)).result[0]


def apply(
    model: ModelPatcher, seed: int = 0, partner: Mapping[str, Tensor] | None = None, role: str = "condition",
    file: Mapping[str, object] | None = None, weights: Mapping[str, Tensor] | None = None, **settings: object,
) -> ModelPatcher:  # fmt: skip
    """The Apply node with a drawn file and a drawn partner."""
    prompts = (
        settings.pop("positive", tiny_models.text(31 + seed)),
        settings.pop("negative", tiny_models.text(41 + seed)),
    )
    return UniConApply.execute(
        model, unicon(model, seed, weights, **(file or {})), latent() if partner is None else partner, role, *prompts,
        **settings,
    ).result[0]  # fmt: skip


def beside(model: ModelPatcher, size: tuple[int, int] = (16, 16)) -> ModelPatcher:
    """As the laws of all methods take it: the partner is a picture of the size that is sampled."""
    return apply(model, partner=latent(size))


def joint(
    model: ModelPatcher, seed: int = 0, file: Mapping[str, object] | None = None,
    weights: Mapping[str, Tensor] | None = None, **settings: object,
) -> ModelPatcher:  # fmt: skip
    """The Apply Joint node with a drawn file."""
    prompts = (
        settings.pop("positive", tiny_models.text(31 + seed)),
        settings.pop("negative", tiny_models.text(41 + seed)),
    )
    return UniConApplyJoint.execute(model, unicon(model, seed, weights, **(file or {})), *prompts, **settings).result[0]


def halves(
    image: Mapping[str, Tensor] | None = None, condition: Mapping[str, Tensor] | None = None, **more: object
) -> dict[str, Tensor]:
    """The latent of both pictures by the Joint Latent node; what is not given is made of noise alone."""
    return UniConJointLatent.execute(image, condition, 128, 128, **more).result[0]


def run_joint(
    model: ModelPatcher, latent: Mapping[str, Tensor], steps: int = 2, cfg: float = 5.0, sampler: str = "euler",
    positive: list | None = None, negative: list | None = None, **extra: object,
) -> list[Tensor]:  # fmt: skip
    """A run of the host's KSampler on a joint latent; gives the image and the condition (b, c, h, w)."""
    samples = latent["samples"]
    out = comfy.sample.sample(
        model, tiny_models.noise(b=len(samples)), steps, cfg, sampler, "normal", positive or tiny_models.text(1),
        negative or tiny_models.text(2), samples, seed=7,
        noise_mask=latent.get("noise_mask"), disable_pbar=True, **extra,
    )  # fmt: skip
    return [half["samples"] for half in UniConSplit.execute({**latent, "samples": out}).result]
