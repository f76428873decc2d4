"""How many operations of torch a method adds for each text attention. On a GPU each is a launch, and they add up."""

from __future__ import annotations

import pytest
from reins.engine.unet import find_sites
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS
from torch.utils._python_dispatch import TorchDispatchMode

# With views and copies. It was 17 for IP-Adapter while its k and v were put into heads in each step, 77 for NAG while
# each chunk was attended to alone, 132 for PLADIS by picture, and 242 for UniCon while each LoRA had two products.
# UniCon has 188, but 197 on ComfyUI 0.3.64, whose own functions do more.
AT_MOST = {"nag": 51, "pladis": 66, "ip-adapter": 7, "unicon": 197}


class Operations(TorchDispatchMode):
    """Counts operations inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations_per_step(model) -> float:
    counts = []
    for steps in (1, 3):
        with Operations() as operations:
            tiny_models.sample(model, steps=steps)
        counts.append(operations.count)
    return (counts[1] - counts[0]) / 2


@pytest.mark.parametrize("name", AT_MOST)
def test_a_text_attention_takes_few_more_operations(name, sd15):
    attentions = len(find_sites(sd15, "attn2"))
    added = operations_per_step(METHODS[name](sd15)) - operations_per_step(sd15)
    assert 0 < added / attentions <= AT_MOST[name]
