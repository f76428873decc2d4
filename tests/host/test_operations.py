"""How many operations of torch a method adds for each text attention. On a GPU each is a launch, and they add up."""

from __future__ import annotations

import pytest
from reins.engine.unet import find_sites
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
