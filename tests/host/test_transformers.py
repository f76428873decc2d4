"""The tiny diffusion transformers do what tests rely on: text, noise and each picture of a batch alone decide."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, latent, noise_like, sample, text


@pytest.mark.parametrize("family", GUIDED)
def test_a_tiny_transformer_sees_its_text_and_takes_pictures_apart(family):
    model = MODELS[family]()
    noise = noise_like(latent(family, batch=2))
    both = sample(family, model, batch=2, start=noise)
    assert both.isfinite().all() and both.shape == noise.shape
    for row in range(2):
        alone = sample(family, model, start=noise[row : row + 1])
        assert nearly(both[row : row + 1], alone, 1e-4)
    other = sample(family, model, start=noise[:1], positive=text(3, 7, family))
    assert not nearly(other, both[:1], 1e-2)
    assert torch.equal(sample(family, MODELS[family](), start=noise[:1]), sample(family, model, start=noise[:1]))
