"""Wrong inputs of Normalized Attention Guidance on transformers: one clear error, and nothing is patched."""

from __future__ import annotations

import comfy.model_base
import pytest
import torch
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like, sample, text
from reins.tests.helpers.two_texts import conds_of


@pytest.mark.parametrize("family", ["sd3", "flux", "lumina", "wan", "predict2", "hunyuan_video", "qwen", "aura"])
def test_nag_names_a_negative_of_another_model(family):
    model = MODELS[family]()
    options = str(model.model_options)
    with pytest.raises(ValueError, match="should be a text of 16 numbers per token, as the model reads it, but is"):
        nag(model, [[torch.randn(1, 5, 8), {}]])
    with pytest.raises(ValueError, match="negative should be a prompt, but holds none"):
        nag(model, [])
    assert str(model.model_options) == options


def test_nag_asks_for_the_llama_tokens_of_hidream():
    with pytest.raises(ValueError, match="negative should have the tokens of HiDream's Llama, but has none"):
        nag(MODELS["hidream"](), text(3))


def test_nag_refuses_texts_with_a_mask_in_joint_attention():
    model, mask = MODELS["hunyuan_video"](), torch.tensor([[1, 1, 1, 0, 0]])
    masked = text(1, attention_mask=mask)
    with pytest.raises(RuntimeError, match=r"but the positive leaves out some of its tokens \(attention_mask\)"):
        sample("hunyuan_video", nag(model, text(3)), positive=masked)
    with pytest.raises(RuntimeError, match=r"but the negative leaves out some of its tokens \(attention_mask\)"):
        sample("hunyuan_video", nag(model, masked))


def test_nag_refuses_words_that_a_second_encoder_reads():
    byt5 = text(3, conditioning_byt5small=torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match=r"should have no words in quotes.*beside the positive in HunyuanVideo\."):
        nag(MODELS["hunyuan_video"](), byt5)


def test_nag_refuses_an_ltx_model_that_changes_its_text_in_each_step():
    model = MODELS["ltxv"]()
    model.model.diffusion_model.transformer_blocks[0].cross_attention_adaln = True
    with pytest.raises(ValueError, match=r"this LTX model changes its text in each step \(LTX-2\.3\)"):
        nag(model, text(3, family="ltxv"))


def test_nag_refuses_pictures_between_text_and_picture_on_lumina():
    model, negative = MODELS["lumina"](), text(3, family="lumina")
    positive = text(1, family="lumina", reference_latents=[noise_like(latent("lumina", 4, 4))])
    if "ref_latents" not in conds_of(model, positive, latent("lumina")):
        pytest.skip("this ComfyUI gives Lumina2 no reference pictures")
    with pytest.raises(RuntimeError, match=r"but the positive comes with pictures \(ref_latents\)"):
        sample("lumina", nag(model, negative), positive=positive)


def test_nag_refuses_a_longer_negative_on_longcat_image():
    if not hasattr(comfy.model_base, "LongCatImage"):
        pytest.skip("this ComfyUI has no LongCat-Image")
    model = MODELS["flux"]()
    model.model.__class__ = comfy.model_base.LongCatImage
    with pytest.raises(RuntimeError, match=r"should not be longer than the positive \(5 tokens\).*but has 9"):
        sample("flux", nag(model, text(3, 9)))
    assert sample("flux", nag(model, text(3, 3))).isfinite().all()


def test_nag_asks_for_the_pooled_text_that_the_model_reads():
    without = [[tokens, {"other": 1}] for tokens, _ in text(3)]
    with pytest.raises(RuntimeError, match=r"negative of .* should come with 'pooled_output', which this model reads"):
        sample("sd3", nag(MODELS["sd3"](), without))
