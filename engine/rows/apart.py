"""Sends each conditioning through the network in a call of its own.

Packs for regional prompts add rows to a call inside the text attention, and some do not say for which prompt. If a call
has one prompt, they are all for that. The host never batches conds that hold different constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import comfy.conds

APART = "reins_apart"  # an input of the model, which rows/order.py takes away again


def each_apart(conds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns copies of the conds that the host batches with no other cond."""
    constants = [comfy.conds.CONDConstant(str(uuid4())) for _ in conds]
    return [
        {**cond, "model_conds": {**cond["model_conds"], APART: constant}}
        for cond, constant in zip(conds, constants, strict=True)
    ]
