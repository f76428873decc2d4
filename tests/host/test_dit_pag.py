"""PAG on transformers, against attention with an explicit matrix by the host alone."""

from __future__ import annotations

import comfy.ldm.flux.model
import pytest
import torch
from reins.nodes.guidance.perturbed_attention import IMAGE_TOKENS, PerturbedAttentionGuidance
from reins.tests.helpers.attention_by_hand import calls_of
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, VIDEO, latent, make, noise_like
from reins.tests.helpers.transformers_by_hand import (
    CROSS,
    LAYERS,
    both_texts,
    guided,
    perturbed,
    predict,
    see_text,
    themselves,
)

FORMS = {"see text": see_text, "themselves": themselves}
CASES = {
    "plain": {},
    "odd sizes and two pictures": {"size": (7, 10), "batch": 2},
    "a longer negative": {"tokens": (5, 9)},
    "no CFG": {"cfg": 1.0},
    "a shorter negative": {"tokens": (9, 5), "size": (10, 6)},
}
NO_ODD = ("hunyuan_video", "predict2")  # families of which some host takes no odd sizes


def pag(model, layers, image_tokens="see text", scale=3.0):
    return PerturbedAttentionGuidance.execute(model, scale, 0.0, 1.0, layers, "none", 0.1, True, image_tokens).result[0]


def check(family, model, x, form, cfg=4.0, tokens=(5, 5), in_front=0, conds=None):
    """Compares the node with three runs of the host alone."""
    positive, negative = both_texts(family, tokens, **(conds or {}))
    with forwards(model) as rows:
        found = predict(family, pag(model, LAYERS[family][0], form), x, positive, cfg, negative=negative)
    a, b = (predict(family, model, x, of) for of in (positive, negative))
    c = predict(family, perturbed(family, model, x, tokens[0], FORMS[form], in_front), x, positive)
    expected = guided(a, b, c, cfg, 3.0)
    assert nearly(found, expected, 2e-5), ((found - expected).abs().max() / expected.abs().max()).item()
    assert not nearly(c, a, 1e-3)
    assert sum(rows) == len(x) * (3 if cfg != 1 else 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", IMAGE_TOKENS)
@pytest.mark.parametrize("family", GUIDED)
def test_pag_is_the_prediction_with_this_matrix(family, form, case):
    given = dict(CASES[case])
    size, batch = given.pop("size", (8, 12)), given.pop("batch", 1)
    if family in NO_ODD and size[0] % 2:
        size = (6, 10)
    check(family, MODELS[family](), noise_like(latent(family, *size, batch=batch)), form, **given)


@pytest.mark.parametrize("family", [family for family in VIDEO if family != "qwen"])
@pytest.mark.parametrize("frames", [1, 2])
def test_pag_takes_any_number_of_frames(family, frames):
    check(family, MODELS[family](), noise_like(latent(family, frames=frames)), "see text")


@pytest.mark.parametrize("family", CROSS)
def test_the_forms_are_the_same_if_the_text_is_in_another_attention(family):
    model, x = MODELS[family](), noise_like(latent(family))
    positive, _ = both_texts(family)
    runs = [predict(family, pag(model, "b1", form), x, positive, 4.0) for form in IMAGE_TOKENS]
    assert torch.equal(*runs)


def reference(family, h=4, w=6):
    return noise_like(latent(family, h, w, frames=1), 3)


FLUX2 = {"global_modulation": True, "guidance_embed": False, "vec_in_dim": None}  # the host knows it for these alone


def of_timestep_zero(family):
    return {"reference_latents": [reference(family)], "reference_latents_method": "index_timestep_zero"}


REFERENCES = {
    "flux": ("flux", {}, lambda: {"reference_latents": [reference("flux")]}, 0),
    "flux, two": ("flux", {}, lambda: {"reference_latents": [reference("flux"), reference("flux", 8, 8)]}, 0),
    "flux, of timestep 0": ("flux", FLUX2, lambda: of_timestep_zero("flux"), 0),
    "qwen": ("qwen", {}, lambda: {"reference_latents": [reference("qwen")]}, 0),
    "qwen, of timestep 0": ("qwen", {}, lambda: of_timestep_zero("qwen"), 0),
    "wan in front": ("wan", {"in_dim_ref_conv": 16}, lambda: {"reference_latents": [reference("wan", 8, 12)]}, 24),
    "wan behind": ("wan", {}, lambda: {"context_latents": [reference("wan")]}, 0),
    "hunyuan_video": ("hunyuan_video", {}, lambda: {"ref_latent": reference("hunyuan_video")}, 6),
}  # fmt: skip


@pytest.mark.parametrize("form", IMAGE_TOKENS)
@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_never_perturbed(name, form):
    family, settings, conds, in_front = REFERENCES[name]
    if settings is FLUX2 and not hasattr(comfy.ldm.flux.model.FluxParams, "global_modulation"):
        pytest.skip("this ComfyUI has no such model")
    model, x = make(family, **settings), noise_like(latent(family))
    if not has_more_tokens(family, model, x, conds()):
        pytest.skip("this ComfyUI has no such reference")
    tokens = (5, 7) if family == "hunyuan_video" else (5, 5)  # the host takes one row with a reference at a time
    check(family, model, x, form, conds=conds(), in_front=in_front, tokens=tokens)


def has_more_tokens(family, model, x, conds):
    """Whether the host puts tokens of the conds beside the picture."""

    def count(**conds):
        run = calls_of(model, lambda model: predict(family, model, x, both_texts(family, **conds)[0]))
        return max(call.q.shape[2] for call in run)

    return count(**conds) > count()


@pytest.mark.parametrize("form", IMAGE_TOKENS)
def test_references_of_z_image_are_never_perturbed(form):
    """Omni models have references in front of the picture, each with a text in front of all."""
    model, x = MODELS["zimage"](), noise_like(latent("zimage"))
    conds = {"reference_latents": [reference("zimage")]}
    if not has_more_tokens("zimage", model, x, conds):
        pytest.skip("this ComfyUI has no references for Z-Image")
    check_omni(model, x, form, conds)


def check_omni(model, x, form, conds):
    """Text of the reference and of the prompt (32 each), the reference padded to 32, then the picture."""
    positive, negative = both_texts("zimage", **conds)
    found = predict("zimage", pag(model, "b1", form), x, positive, 4.0, negative=negative)
    c = predict("zimage", perturbed("zimage", model, x, 5, FORMS[form], 64, blocks=["layers.1"]), x, positive)
    a, b = (predict("zimage", model, x, of) for of in (positive, negative))
    assert nearly(found, guided(a, b, c, 4.0, 3.0), 2e-5)
    assert not nearly(c, a, 1e-3)


@pytest.mark.parametrize("family", ["qwen", "hunyuan_video", "ltxv"])
@pytest.mark.parametrize("form", IMAGE_TOKENS)
def test_masked_text_stays_masked(family, form):
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    model, is_alone = MODELS[family](), family == "hunyuan_video"  # the host takes one row with a mask at a time
    x = noise_like(latent(family, batch=1 if is_alone else 2))
    check(family, model, x, form, conds={"attention_mask": mask}, cfg=1.0 if is_alone else 4.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", GUIDED)
def test_half_precision_is_finite_and_near(family, dtype):
    MODELS[family]()  # skips the test on hosts that lack it
    x = noise_like(latent(family))
    exact, half = (
        predict(family, pag(MODELS[family](dtype=of), LAYERS[family][0]), x, both_texts(family)[0], 4.0)
        for of in (torch.float32, dtype)
    )
    assert half.isfinite().all()
    assert nearly(half.float(), exact, 0.1) or family == "hidream"  # whose experts are chosen by small differences
