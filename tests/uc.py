"""Small UniCon files for the tiny models, seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import block_names, unet_of
from reins.models.unicon.files import SETS, parse_unicon
from reins.models.unicon.network import Post
from reins.nodes.unicon.apply_node import UniConApply
from reins.nodes.unicon.joint_node import UniConApplyJoint
from reins.nodes.unicon.load import make_unicon
from reins.nodes.unicon.side_by_side import UniCon
from reins.tests import tiny
from torch import Tensor

RANK = 2


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
    return {"samples": 3 * tiny.noise(*size, b=b, seed=seed)}


def apply_file(model: ModelPatcher, file: UniCon) -> ModelPatcher:
    return UniConApply.execute(model, file, latent(), "condition", tiny.text(31), tiny.text(41)).result[0]


def apply(
    model: ModelPatcher, seed: int = 0, partner: Mapping[str, Tensor] | None = None, role: str = "condition",
    file: Mapping[str, object] | None = None, weights: Mapping[str, Tensor] | None = None, **settings: object,
) -> ModelPatcher:  # fmt: skip
    """The Apply node with a file and a partner of its own."""
    prompts = (settings.pop("positive", tiny.text(31 + seed)), settings.pop("negative", tiny.text(41 + seed)))
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
    """The Apply Joint node with a file of its own."""
    prompts = (settings.pop("positive", tiny.text(31 + seed)), settings.pop("negative", tiny.text(41 + seed)))
    return UniConApplyJoint.execute(model, unicon(model, seed, weights, **(file or {})), *prompts, **settings).result[0]
