"""Normalized Attention Guidance with a negative for some frames of a video.

Frames that are shown alone must give what they give as a video of their own.
"""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like, sample, text
from torch import Tensor

FRAMES, HALF = 4, 2
FIRST = torch.cat([torch.ones(HALF, 8, 12), torch.zeros(HALF, 8, 12)])
EARLY = {
    "mask": {"mask": FIRST},
    "area": {"area": (HALF, 8, 12, 0, 0, 0)},
    "share": {"area": ("percentage", 0.5, 1.0, 1.0, 0.0, 0.0, 0.0)},
}  # a negative for the first half
FAMILIES = pytest.mark.parametrize("family", ["wan", "hunyuan_video", "ltxv"])
KINDS = pytest.mark.parametrize("kind", EARLY)


def negative(family: str, **settings: object) -> list:
    ((tokens, own),) = text(3, 9, family)
    return [[tokens, {**own, **settings}]]


def run(family: str, model: ModelPatcher, **extra: object) -> Tensor:
    return sample(family, model, **{"cfg": 1.0, "steps": 1, "frames": FRAMES, **extra})


def halves(family: str, model: ModelPatcher) -> Tensor:
    """What the halves of the video give by themselves, the first with the negative and the second without."""
    noise = noise_like(latent(family, frames=FRAMES)).chunk(2, 2)
    models = nag(model, negative(family)), model
    return torch.cat(
        [run(family, of, frames=HALF, start=part) for of, part in zip(models, noise, strict=True)], 2
    )  # fmt: skip


@FAMILIES
@KINDS
def test_context_windows_over_frames_show_each_its_part(family, kind):
    windows = pytest.importorskip("comfy.context_windows")
    model = MODELS[family]()
    windowed = model.clone()
    windowed.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule("standard_static"), windows.get_matching_fuse_method("pyramid"),
        context_length=HALF, context_overlap=0, dim=2,
    )  # fmt: skip
    windowed.model_options["context_handler"].causal_window_fix = False  # newer hosts show a further frame with each
    found = run(family, nag(windowed, negative(family, **EARLY[kind])))
    assert nearly(found, halves(family, model), 1e-4)


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
@KINDS
def test_areas_of_some_frames_have_their_part(family, kind):
    model = MODELS[family]()
    ((tokens, own),) = text(1, family=family)
    positive = [[tokens, {**own, "area": (HALF, 8, 12, start, 0, 0)}] for start in (0, HALF)]
    found = run(family, nag(model, negative(family, **EARLY[kind])), positive=positive)
    assert nearly(found, halves(family, model), 1e-4)


@FAMILIES
def test_all_ways_to_name_frames_are_the_same(family):
    model = MODELS[family]()
    by_mask, by_area, by_share = (run(family, nag(model, negative(family, **EARLY[kind]))) for kind in EARLY)
    assert torch.equal(by_mask, by_area) and torch.equal(by_area, by_share)
    whole = run(family, nag(model, negative(family)))
    assert not nearly(by_mask, whole, 1e-2) and not nearly(by_mask, run(family, model), 1e-2)
    late = negative(family, mask=1 - FIRST)
    assert nearly(run(family, nag(model, negative(family, mask=FIRST) + late)), whole, 1e-4)


@FAMILIES
def test_a_mask_of_one_picture_is_for_all_frames(family):
    model = MODELS[family]()
    left = torch.zeros(1, 8, 12)
    left[..., :6] = 1.0
    one = run(family, nag(model, negative(family, mask=left)))
    assert torch.equal(run(family, nag(model, negative(family, mask=left.expand(FRAMES, -1, -1)))), one)
