"""SEG on transformers, against attention of blurred queries by the host alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from reins.nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, VIDEO, latent, make, noise_like
from reins.tests.helpers.transformers_by_hand import LAYERS, blurred, both_texts, guided, perturbed, predict

SIGMAS = {"mean": -1.0, "narrow": 0.8, "wide": 20000.0}
CASES = {
    "plain": {},
    "odd sizes and two pictures": {"size": (7, 10), "batch": 2},
    "another length of text, no CFG": {"tokens": (9, 5), "cfg": 1.0, "size": (10, 6)},
}
NO_ODD = ("hunyuan_video", "predict2")


def seg(model, layers, blur_sigma, scale=3.0):
    return SmoothedEnergyGuidance.execute(model, scale, blur_sigma, 0.0, 1.0, layers).result[0]


def check(family, model, x, blur_sigma, cfg=4.0, tokens=(5, 5), in_front=0, conds=None):
    """Compares the node with three runs of the host alone."""
    positive, negative = both_texts(family, tokens, **(conds or {}))
    found = predict(family, seg(model, LAYERS[family][0], blur_sigma), x, positive, cfg, negative=negative)
    a, b = (predict(family, model, x, of) for of in (positive, negative))
    by_hand = partial(blurred, sigma=-1.0 if blur_sigma > 9999 else blur_sigma)
    c = predict(family, perturbed(family, model, x, tokens[0], by_hand, in_front), x, positive)
    assert nearly(found, guided(a, b, c, cfg, 3.0), 2e-5)
    assert not nearly(c, a, 1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("family", GUIDED)
def test_seg_is_the_prediction_with_blurred_queries(family, sigma, case):
    given = dict(CASES[case])
    size, batch = given.pop("size", (8, 12)), given.pop("batch", 1)
    if family in NO_ODD and size[0] % 2:
        size = (6, 10)
    check(family, MODELS[family](), noise_like(latent(family, *size, batch=batch)), SIGMAS[sigma], **given)


@pytest.mark.parametrize("family", [family for family in VIDEO if family != "qwen"])
@pytest.mark.parametrize("frames", [1, 2])
def test_each_frame_is_blurred_alone(family, frames):
    check(family, MODELS[family](), noise_like(latent(family, frames=frames)), 0.8)


def reference(family, h=4, w=6):
    return noise_like(latent(family, h, w, frames=1), 3)


@pytest.mark.parametrize(
    ("family", "settings", "conds", "in_front"),
    [
        ("flux", {}, lambda: {"reference_latents": [reference("flux")]}, 0),
        ("qwen", {}, lambda: {"reference_latents": [reference("qwen")]}, 0),
        ("wan", {"in_dim_ref_conv": 16}, lambda: {"reference_latents": [reference("wan", 8, 12)]}, 24),
        ("wan", {}, lambda: {"context_latents": [reference("wan")]}, 0),
    ],
    ids=["flux", "qwen", "wan in front", "wan behind"],
)
@pytest.mark.parametrize("sigma", ["mean", "narrow"])
def test_queries_of_references_are_never_blurred(family, settings, conds, in_front, sigma):
    check(family, make(family, **settings), noise_like(latent(family)), SIGMAS[sigma], conds=conds(), in_front=in_front)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", GUIDED)
def test_half_precision_is_finite(family, dtype):
    MODELS[family]()  # skips the test on hosts that lack it
    steered = seg(MODELS[family](dtype=dtype), LAYERS[family][0], 0.8)
    assert predict(family, steered, noise_like(latent(family)), both_texts(family)[0], 4.0).isfinite().all()
