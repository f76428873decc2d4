"""Skip Layer Guidance, against networks whose blocks are identities by hooks of torch."""

from __future__ import annotations

import comfy.ldm.flux.model
import pytest
import torch
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, latent, make, noise_like
from reins.tests.helpers.transformers_by_hand import LAYERS, both_texts, guided, predict, skipping

CASES = {
    "plain": {},
    "odd sizes and two pictures": {"size": (7, 10), "batch": 2},
    "a longer negative": {"tokens": (5, 9)},
    "another length of text, no CFG": {"tokens": (9, 5), "cfg": 1.0, "size": (10, 6)},
}
NO_ODD = ("hunyuan_video", "predict2")
LAST = {"sd3": ("b2", "joint_blocks.2"), "sd35m": ("b0,b2", "joint_blocks.0 joint_blocks.2"),
        "flux": ("d0,s1", "double_blocks.0 single_blocks.1"), "wan": ("b0,b2", "blocks.0 blocks.2"),
        "lumina": ("b0-2", "layers.0 layers.1 layers.2"), "qwen": ("b0-2", "transformer_blocks.0 transformer_blocks.1 "
        "transformer_blocks.2"), "hidream": ("all", "double_stream_blocks.0 single_stream_blocks.0 "
        "single_stream_blocks.1"), "aura": ("all", "double_layers.0 single_layers.0 single_layers.1")}  # fmt: skip


def slg(model, layers, scale=2.8, start=0.0, end=1.0):
    return SkipLayerGuidance.execute(model, scale, start, end, layers).result[0]


def check(family, model, x, cfg=4.0, tokens=(5, 5), conds=None, layers="", blocks=()):
    """Compares the node with three runs of the host alone."""
    positive, negative = both_texts(family, tokens, **(conds or {}))
    with forwards(model) as rows:
        found = predict(family, slg(model, layers or LAYERS[family][0]), x, positive, cfg, negative=negative)
    a, b = (predict(family, model, x, of) for of in (positive, negative))
    with skipping(family, model, blocks):
        c = predict(family, model, x, positive)
    assert nearly(found, guided(a, b, c, cfg, 2.8), 2e-5)
    assert not nearly(c, a, 1e-3)
    assert sum(rows) == len(x) * (3 if cfg != 1 else 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", GUIDED)
def test_slg_is_the_prediction_without_these_blocks(family, case):
    given = dict(CASES[case])
    size, batch = given.pop("size", (8, 12)), given.pop("batch", 1)
    if family in NO_ODD and size[0] % 2:
        size = (6, 10)
    check(family, MODELS[family](), noise_like(latent(family, *size, batch=batch)), **given)


@pytest.mark.parametrize("family", LAST)
def test_first_and_last_blocks_may_be_skipped(family):
    layers, blocks = LAST[family]
    check(family, MODELS[family](), noise_like(latent(family)), layers=layers, blocks=blocks.split())


def reference(family, h=4, w=6):
    return noise_like(latent(family, h, w, frames=1), 3)


@pytest.mark.parametrize("method", ["index", "index_timestep_zero", "offset"])
@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_references_pass_a_skipped_block_too(family, method):
    settings = {"global_modulation": True, "guidance_embed": False, "vec_in_dim": None} if family == "flux" else {}
    if settings and not hasattr(comfy.ldm.flux.model.FluxParams, "global_modulation"):
        pytest.skip("this ComfyUI has no such model")
    conds = {"reference_latents": [reference(family)], "reference_latents_method": method}
    check(family, make(family, **settings), noise_like(latent(family)), conds=conds)


@pytest.mark.parametrize("family", ["qwen", "ltxv"])
def test_masked_text_stays_masked(family):
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    check(family, MODELS[family](), noise_like(latent(family, batch=2)), conds={"attention_mask": mask})


@pytest.mark.parametrize("family", ["wan", "ltxv", "hunyuan_video", "predict2"])
def test_slg_takes_one_frame(family):
    check(family, MODELS[family](), noise_like(latent(family, frames=1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", GUIDED)
def test_half_precision_is_finite(family, dtype):
    MODELS[family]()  # skips the test on hosts that lack it
    steered = slg(MODELS[family](dtype=dtype), LAYERS[family][0])
    assert predict(family, steered, noise_like(latent(family)), both_texts(family)[0], 4.0).isfinite().all()


def test_a_unet_has_no_blocks_to_skip(sd15):
    with pytest.raises(ValueError, match=r"skips blocks of a transformer, but the model is BaseModel, a UNet"):
        slg(sd15, "auto")
