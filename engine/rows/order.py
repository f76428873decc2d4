"""Order and labels of the chunks of a batch, as the model and other packs see them.

Extra predictions travel as further chunks of the host's batch. The host puts them before the others, and labels them
with numbers from 2 on. Other packs look for the first 0 (positive) and 1 (negative), or take the last rows for the
positive. So each extra chunk is labelled as the positive or negative that it stands for. All negatives come before all
positives, and among both the host's own come first. The output is put back in the host's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..run import STEP, Step
from .apart import APART
from .conds import NEGATIVE_LABEL, NEGATIVES, check_named
from .names import LABELS, NUMBERS, UUIDS, with_true_names

SAMPLING = "reins_sampling"


def negatives_first(
    executor: Any, x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
    control: dict | None = None, transformer_options: dict[str, Any] = {}, **conds: Any,  # noqa: B006
) -> Tensor:  # fmt: skip
    """APPLY_MODEL wrapper: sorts the chunks if some are extra. Returns the result (b, c, h, w) in the host's order.

    The signature is the host's. The options also get the model's sigma table, for the layers.
    """
    conds.pop(APART, None)
    transformer_options = {**transformer_options, SAMPLING: executor.class_obj.model_sampling}
    transformer_options = with_true_names(transformer_options, conds.pop(NUMBERS, None), len(x))
    check_named(transformer_options)
    step: Step | None = transformer_options.get(STEP)
    uuids = transformer_options.get(UUIDS, [])
    extras = [None if step is None else step.extras.get(uuid) for uuid in uuids]
    if not any(extras):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)
    negatives = transformer_options.get(NEGATIVES, (NEGATIVE_LABEL,))
    labels, places = [], []
    for extra, label in zip(extras, transformer_options[LABELS], strict=True):
        labels.append(int(extra.is_negative) if extra else label)
        places.append((not (extra.is_negative if extra else label in negatives), extra is not None))
    order = sorted(range(len(uuids)), key=places.__getitem__)  # stable
    options = {
        **transformer_options,
        UUIDS: [uuids[i] for i in order],
        LABELS: [labels[i] for i in order],
    }
    if order == list(range(len(order))):
        return executor(x, t, c_concat, c_crossattn, control, options, **conds)
    arguments = (x, t, c_concat, c_crossattn, control)
    x, t, c_concat, c_crossattn, control = (reorder(value, order, len(x)) for value in arguments)
    conds = {name: reorder(value, order, len(x)) for name, value in conds.items()}
    denoised = executor(x, t, c_concat, c_crossattn, control, options, **conds)
    return reorder(denoised, sorted(range(len(order)), key=order.__getitem__), len(x))


def reorder(value: Any, order: Sequence[int], rows: int, count: int | None = None) -> Any:
    """Returns a value with the chunks of all tensors of `rows` rows in `order`. It is copied, not changed.

    There are `count` chunks. Without it there are as many as `order` has, which then only changes their places.
    """
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] != rows:
            return value
        chunks = value.chunk(count or len(order))
        return torch.cat([chunks[i] for i in order])
    if isinstance(value, dict):
        return {key: reorder(item, order, rows, count) for key, item in value.items()}
    if isinstance(value, list):
        return [reorder(item, order, rows, count) for item in value]
    return value
