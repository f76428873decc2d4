"""The way of a sampling step through the files of the pack stays short, for those who read and debug it."""

from __future__ import annotations

import pytest
from reins.tests.helpers.methods import METHODS
from reins.tests.helpers.steps import steps_of

# Changes of file per step on the tiny UNet with ten transformers. Before chunks were typed and made once per call it
# was 220 for IP-Adapter and 515 for UniCon. Two are the question whether the network is compiled, and two that of a
# difference that is held. PAG had 119 while the chunks that it acts on were found anew in each attention.
AT_MOST = {"pag": 120, "ip-adapter": 115, "unicon": 276, "controlnext": 73, "nag": 224, "h-edit": 185}


@pytest.mark.parametrize("name", AT_MOST)
def test_a_step_leads_from_file_to_file_a_few_times(name, sd15):
    steps = steps_of(METHODS[name](sd15))
    assert 0 < steps.changes <= AT_MOST[name]


def test_a_plain_model_never_enters_the_pack(sd15):
    assert steps_of(sd15) == (0, 0)
