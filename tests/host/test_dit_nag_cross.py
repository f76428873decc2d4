"""Normalized Attention Guidance on transformers with text attention: whose modules make keys of the negative."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_base
import pytest
import torch
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import MODELS, noise_like, sample, text
from reins.tests.helpers.two_texts import guided_by_hand, start


def cross(queries, keys):
    """What of an attention that is not over the picture alone is guided: all of it."""
    return None if queries == keys else slice(0, queries)


def steered(family, model, negative):
    return sample(family, nag(model, negative), cfg=1.0, steps=1)


def test_nag_reads_its_negative_with_the_loras_matrices():
    model, negative = MODELS["wan"](), text(3, 7, "wan")
    keys = [key for key in model.model.state_dict() if "cross_attn.k.weight" in key or "text_embedding.0.weight" in key]
    patched = model.clone()
    patched.add_patches({key: (0.5 * noise_like(model.model.state_dict()[key], seed=5),) for key in keys})
    found = steered("wan", patched, negative)
    by_weights = MODELS["wan"]()
    for key in keys:
        weight = by_weights.model.get_parameter(key)
        weight.add_(0.5 * noise_like(weight, seed=5))
    assert nearly(found, steered("wan", by_weights, negative), 1e-5)
    assert not nearly(found, steered("wan", model, negative), 1e-2)


def test_nag_leaves_wans_attention_to_a_picture_as_it_is():
    """Image to video: each block attends to the tokens of a picture too, in a call between the other two."""
    model, negative = MODELS["wan"](model_type="i2v"), text(3, 9, "wan")
    tokens = torch.randn((1, 257, 1280), generator=torch.Generator().manual_seed(4))
    positive = text(1, family="wan", clip_vision_output=SimpleNamespace(penultimate_hidden_states=tokens))
    found = sample("wan", nag(model, negative), cfg=1.0, steps=1, positive=positive)

    def picture(queries, keys):
        return None if keys in (queries, 257) else slice(0, queries)

    begin, prompts = start("wan", model), [positive, negative]
    assert nearly(found, guided_by_hand(model, begin, prompts, [picture, picture]), 2e-5)


class Adapter(torch.nn.Module):
    """Stands for Anima's adapter, which is large: it makes a text of tokens for another encoder."""

    def forward(self, text, ids):
        return text.mean(1, keepdim=True) + torch.sin(ids[..., None] * torch.arange(1, text.shape[-1] + 1))


@pytest.mark.parametrize("is_inference", [True, False])
def test_nag_reads_animas_text_as_the_model_does(is_inference):
    """The host adapts the text with the conds, or in the network if gradients may be wanted."""
    anima = pytest.importorskip("comfy.ldm.anima.model", reason="this ComfyUI has no Anima")
    model = MODELS["predict2"]()
    network = model.model.diffusion_model
    network.llm_adapter = Adapter()
    network.__class__, model.model.__class__ = anima.Anima, comfy.model_base.Anima
    positive, negative = (
        text(seed, 5, "predict2", t5xxl_ids=torch.arange(seed, seed + tokens), t5xxl_weights=torch.ones(tokens))
        for seed, tokens in ((1, 6), (3, 9))
    )
    with torch.inference_mode(is_inference):
        found = sample("predict2", nag(model, negative), cfg=1.0, steps=1, positive=positive)
        expected = guided_by_hand(model, start("predict2", model), [positive, negative], [cross, cross])
    assert nearly(found, expected, 2e-5)
    assert not nearly(found, sample("predict2", model, cfg=1.0, steps=1, positive=positive), 1e-3)


def test_nag_hides_the_masked_tokens_of_a_negative_on_ltx_video():
    """They count for nothing, so their numbers may be any."""
    model, negative = MODELS["ltxv"](), text(3, 7, "ltxv")
    text_of, settings = negative[0]
    masked = {**settings, "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]])}
    other = text_of.clone()
    other[:, 4:] = 9.0
    found = steered("ltxv", model, [[text_of, masked]])
    assert nearly(steered("ltxv", model, [[other, masked]]), found, 1e-6)
    assert not nearly(steered("ltxv", model, negative), found, 1e-3)
    cut = {**settings, "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert nearly(steered("ltxv", model, [[text_of[:, :4], cut]]), found, 1e-5)
