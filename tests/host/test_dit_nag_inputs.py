"""Wrong inputs of Normalized Attention Guidance on transformers: one clear error, and nothing is patched."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_transformers import MODELS, sample, text


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
