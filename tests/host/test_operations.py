"""How many operations of torch a method adds for each text attention. On a GPU each is a launch, and they add up."""

from __future__ import annotations

import pytest
import torch
from reins.bench.counting import peak_of
from reins.engine.unet import find_sites
from reins.models.guidance.sparse_cross_attention import sparse_less_dense, sparser_attention
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS

# With views and copies. It was 17 for IP-Adapter while its k and v were put into heads in each step, 77 for NAG while
# each chunk was attended to alone, 132 for PLADIS by picture and 66 beside the dense attention, and 242 for UniCon
# while each LoRA had two products. UniCon has 188, but 197 on ComfyUI 0.3.64, whose own functions do more.
# PLADIS had 28 while softmax was one operation of torch, which takes longer on a CPU than the parts left of it.
AT_MOST = {"nag": 34, "pladis": 30, "ip-adapter": 7, "unicon": 197}


def operations_per_step(model) -> float:
    return tiny_models.per_step(tiny_models.Operations, lambda steps: tiny_models.sample(model, steps=steps))


@pytest.mark.parametrize("name", AT_MOST)
def test_a_text_attention_takes_few_more_operations(name, sd15):
    attentions = len(find_sites(sd15, "attn2"))
    added = operations_per_step(METHODS[name](sd15)) - operations_per_step(sd15)
    assert 0 < added / attentions <= AT_MOST[name]


@pytest.mark.parametrize("attend", [sparse_less_dense, lambda q, k, v, heads: sparser_attention(q, k, v, heads, 2.0)])
def test_sparse_attention_holds_at_most_eight_times_its_weights(attend):
    """It was nine times while the dense weights were the softmax of torch, and ten while they were made in parts."""
    heads, tokens, keys = 8, 1024, 77
    q, k, v = (torch.randn(1, n, 32) for n in (tokens, keys, keys))
    assert peak_of(lambda steps: attend(q, k, v, heads)) <= 8.1 * (heads * tokens * keys * q.element_size())
