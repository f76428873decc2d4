"""Normalized Attention Guidance on transformers, against plain runs of the host's network that meet at attentions."""

from __future__ import annotations

import threading

import pytest
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, sample, text
from reins.tests.helpers.two_texts import guided_by_hand, pictures_of, start

LENGTHS = [5, 3, 9]  # of the negative. The positive has 5 tokens


def by_hand(family, model, *negatives, batch=1, h=8, w=12, **settings):
    prompts, begin = [text(1, family=family), *negatives], start(family, model, h, w, batch)
    return guided_by_hand(model, begin, prompts, pictures_of(family, model, begin, prompts), **settings)


def steered(family, model, negative, batch=1, h=8, w=12, **settings):
    return sample(family, nag(model, negative, **settings), cfg=1.0, steps=1, batch=batch, h=h, w=w)


@pytest.fixture(name="picture_stays")
def _picture_stays():
    """Makes the run for the negative place the picture as the positive's does, on Lumina2."""
    handles = []

    def stay(model, of_positive, of_negative):
        network = model.model.diffusion_model
        first = hasattr(network, "pad_tokens_multiple")
        multiple = getattr(network, "pad_tokens_multiple", None) or 1
        ends = [tokens + -tokens % multiple + first for tokens in (of_positive, of_negative)]

        def move(part, arguments):
            if threading.current_thread().name != "run 1":
                return None
            positions = arguments[0].clone()
            positions[..., 0][positions[..., 0] == ends[1]] = ends[0]
            return (positions, *arguments[1:])

        handles.append(network.rope_embedder.register_forward_pre_hook(move))

    yield stay
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("family", GUIDED)
def test_nag_guides_the_picture_at_each_attention_to_text(family, tokens, picture_stays):
    model, negative = MODELS[family](), text(3, tokens, family)
    found = steered(family, model, negative)
    assert not nearly(found, sample(family, model, cfg=1.0, steps=1), 1e-3)
    if family in ("lumina", "zimage"):
        picture_stays(model, 5, tokens)
    assert nearly(found, by_hand(family, model, negative), 2e-5)
