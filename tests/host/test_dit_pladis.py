"""Sparse Cross-Attention on transformers, against the host's attention filled by hand with an explicit matrix."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers.methods import nag, pladis
from reins.tests.helpers.references import entmax_by_bisection
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, sample, text
from reins.tests.helpers.two_texts import by_heads

CROSS = ["wan", "ltxv", "predict2"]
JOINT = [family for family in GUIDED if family not in CROSS]


def by_hand(model, scale, masked=0):
    """A clone whose text attention is dense + scale * (sparse - dense). The last `masked` keys count for nothing."""

    def attend(func, q, k, v, heads, *args, **kwargs):
        q, k, v = (by_heads(part, heads, kwargs.get("skip_reshape", False)) for part in (q, k, v))
        seen = slice(0, k.shape[2] - masked) if k.shape[2] != q.shape[2] else slice(None)
        k, v = k[:, :, seen], v[:, :, seen]
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = logits.softmax(-1)
        if k.shape[2] != q.shape[2]:
            weights = weights + scale * (entmax_by_bisection(logits).float() - weights)
        out = weights @ v
        return out if kwargs.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    return model


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("family", CROSS)
def test_pladis_extrapolates_from_dense_to_sparse_in_every_prediction(family, cfg, scale):
    model = MODELS[family]()
    found = sample(family, pladis(model, scale), cfg=cfg, batch=2)
    assert nearly(found, sample(family, by_hand(model, scale), cfg=cfg, batch=2), 1e-4)
    assert not nearly(found, sample(family, model, cfg=cfg, batch=2), 1e-3)


def test_pladis_leaves_out_the_tokens_that_ltx_video_masks():
    model, (pair,) = MODELS["ltxv"](), text(1, 7, "ltxv")
    masked = [[pair[0], {**pair[1], "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]])}]]
    found = sample("ltxv", pladis(model), cfg=1.0, positive=masked)
    assert nearly(found, sample("ltxv", by_hand(model, 2.0, masked=3), cfg=1.0, positive=[pair]), 1e-4)
    cut = [[pair[0][:, :4], {**pair[1], "attention_mask": torch.ones(1, 4, dtype=torch.long)}]]
    assert nearly(found, sample("ltxv", pladis(model), cfg=1.0, positive=cut), 1e-4)


@pytest.mark.parametrize("family", CROSS)
def test_pladis_changes_no_bit_if_it_is_off(family):
    model = MODELS[family]()
    plain = sample(family, model)
    assert torch.equal(sample(family, pladis(model, 0.0)), plain)
    assert torch.equal(sample(family, pladis(model, start=0.9, end=0.91)), plain)


@pytest.mark.parametrize("family", CROSS)
def test_nag_pushes_between_sparse_attentions_in_either_order(family):
    model, negative = MODELS[family](), text(3, 9, family)
    expected = sample(family, nag(by_hand(model, 2.0), negative), cfg=1.0)
    assert nearly(sample(family, nag(pladis(model), negative), cfg=1.0), expected, 1e-4)
    assert nearly(sample(family, pladis(nag(model, negative)), cfg=1.0), expected, 1e-4)


@pytest.mark.parametrize("family", JOINT)
def test_pladis_refuses_attention_over_text_and_picture_at_once(family):
    model = MODELS[family]()
    options = str(model.model_options)
    with pytest.raises(ValueError, match="has no text attention apart from the picture's") as caught:
        pladis(model)
    assert str(model.model_options) == options and str(caught.value).endswith("Remove the node.")
